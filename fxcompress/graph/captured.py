"""The captured module.

`CapturedModule` is a plain `torch.fx.GraphModule` of ATen nodes that behaves like a module: it
switches between training and evaluation, copies, moves between devices and trains.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import FxCompressError
from fxcompress.graph.lazy import READ_LAZILY, carrying, is_lazy, share_lazy_values
from fxcompress.graph.modes import FIXED_MODE as FIXED_MODE
from fxcompress.graph.modes import MODE_FLAGS as MODE_FLAGS
from fxcompress.graph.modes import mode_of as mode_of
from fxcompress.graph.modes import set_mode
from fxcompress.interface import Interface, assuming, being_traced

aten = torch.ops.aten


class CapturedModule(fx.GraphModule):
    """A captured model: ATen nodes, the model's own parameter names, called like the model.

    Attributes:
        interface: What its inputs must be; every call is checked against it, except while it is
            traced. None lets anything through.
    """

    interface: Interface | None = None

    @property
    def graph(self) -> fx.Graph:
        """The graph. It knows its module without keeping it: no cycle holds the parameters of a
        module that nobody uses any more.
        """
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        self.adopt(graph)
        self.recompile()

    def adopt(self, graph: fx.Graph) -> None:
        """Take a graph that is edited further before it is recompiled."""
        self._graph = graph
        graph.owning_module = _Owner(self)  # type: ignore[assignment]

    def recompile(self) -> Any:
        code = super().recompile()
        kind: Any = type(self)  # fx makes a class for every graph module
        kind.forward = _guarded(kind.forward)
        return code

    def train(self, mode: bool = True) -> Self:
        """Switch normalisation and dropout nodes to training, or to evaluation.

        Norms count their batches in training, as the model's do. What a model's own code decided
        by its mode is as it was in evaluation; that includes the dropout inside
        ``scaled_dot_product_attention``.
        """
        super().train(mode)
        if set_mode(self.graph, mode):
            self.recompile()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = _device(self)
        super()._apply(carrying(fn), recurse)  # type: ignore[no-untyped-call]
        after = _device(self)
        if self.interface is not None:
            self.interface = self.interface.cast(
                lambda dtype: fn(torch.empty(0, dtype=dtype)).dtype
            )
        if before is not None and after is not None and before != after:
            _move_devices(self.graph, before, after)
            self.recompile()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # What GraphModule's own gives back is a plain graph module, which checks no inputs.
        return _unpickled, super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedModule:
        # GraphModule's own deepcopy forgets which buffers at the root are not persistent.
        clone = clone_graph(self)
        memo[id(self)] = clone
        for table in (clone._parameters, clone._buffers, clone._modules):
            for name, value in table.items():
                table[name] = copy.deepcopy(value, memo)  # type: ignore[assignment]
        share_lazy_values(self, clone)
        return clone


def clone_graph(module: CapturedModule, *, compiled: bool = True) -> CapturedModule:
    """Give a new graph and a new module tree over the very same parameters and buffers.

    Node names, ``meta`` and the calling convention are kept, so that the copy can be edited while
    the original stays.

    Args:
        module: The module to copy.
        compiled: Make the copy ready to run; a caller that edits it recompiles it anyway.
    """
    clone = CapturedModule(nn.Module(), fx.Graph())
    seen: dict[int, nn.Module] = {id(module): clone}
    _share_tables(module, clone, seen)
    clone.training = module.training
    clone.meta = dict(module.meta)
    clone.interface = module.interface
    graph = _copy_graph(module.graph)
    clone.adopt(graph)
    if compiled:
        clone.recompile()
    return clone


class _Owner:
    """A module as its graph knows it: false once the module is gone."""

    def __init__(self, module: CapturedModule) -> None:
        self._module = weakref.ref(module)

    def __bool__(self) -> bool:
        return self._module() is not None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module(), name)


def _unpickled(rebuild: Callable[..., fx.GraphModule], arguments: tuple[Any, ...]) -> Any:
    """A captured module from what was pickled. What was known of its nodes is not kept."""
    plain = rebuild(*arguments)
    module = CapturedModule(nn.Module(), fx.Graph())
    _share_tables(plain, module, {id(plain): module})
    module.training, module.meta = plain.training, dict(plain.meta)
    module.interface = plain.__dict__["interface"]
    module.graph = plain.graph
    return module


def _guarded(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that looks at its inputs first."""

    @functools.wraps(forward)
    def checked(self: CapturedModule, *args: Any, **kwargs: Any) -> Any:
        if self.interface is not None and (assuming() or not being_traced()):
            self.interface.check(args, kwargs)
        if _reads_lazily(self, (args, kwargs)):
            from fxcompress.graph.interpret import run_lazily  # which runs captured modules

            return run_lazily(self, args, kwargs)
        return forward(self, *args, **kwargs)

    return checked


def _reads_lazily(module: CapturedModule, inputs: object) -> bool:
    """Whether a call is to read the module's lazy values. On inputs without values it is not: that
    gives shapes.

    Raises:
        FxCompressError: The call is traced, which would make constants of the values.
    """
    first = next(chain(module.parameters(), module.buffers()), None)
    if first is None or not first.is_meta or not is_lazy(module):
        return False
    leaves = pytree.tree_leaves(inputs)
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
        return False
    if being_traced():
        raise FxCompressError(
            f"the values of the program's parameters {READ_LAZILY}: a trace needs them all"
        )
    return True


def _device(module: nn.Module) -> torch.device | None:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return None


def _move_devices(graph: fx.Graph, before: torch.device, after: torch.device) -> None:
    """Creation operators name the device they were captured on; it moves with the parameters."""

    def moved(value: Any) -> Any:
        return after if isinstance(value, torch.device) and value == before else value

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)


def _copy_graph(graph: fx.Graph) -> fx.Graph:
    twin = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = twin.node_copy(node, copies.__getitem__)
    twin.set_codegen(graph._codegen)
    return twin


def _share_tables(module: nn.Module, twin: nn.Module, seen: dict[int, nn.Module]) -> None:
    """Give `twin` tables of its own, with the tensors of `module` and twins of its children."""
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    twin._modules = {}
    for name, child in module._modules.items():
        if child is not None and id(child) not in seen:
            seen[id(child)] = copy.copy(child)
            _share_tables(child, seen[id(child)], seen)
        twin._modules[name] = None if child is None else seen[id(child)]
