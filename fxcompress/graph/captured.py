"""The captured module, and what everybody asks of its nodes.

`CapturedModule` is a plain `torch.fx.GraphModule` of ATen nodes that behaves like a module: it
switches between training and evaluation, copies, moves between devices and trains. Shapes are read
with `shape_of`, `dtype_of` and `dynamic_dims`, whatever kind of value ``meta["val"]`` of a node is.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import FxCompressError
from fxcompress.graph.modes import FIXED_MODE as FIXED_MODE
from fxcompress.graph.modes import MODE_FLAGS as MODE_FLAGS
from fxcompress.graph.modes import mode_of as mode_of
from fxcompress.graph.modes import set_mode
from fxcompress.interface import Interface, assuming, being_traced

aten = torch.ops.aten


@dataclass(frozen=True)
class TensorMeta:
    """Shape and dtype of a node's tensor, without the machinery of a fake tensor.

    Attributes:
        shape: Sizes at the example inputs.
        dtype: Element type.
        dynamic: The axes whose size follows the inputs.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: frozenset[int] = frozenset()


class CapturedModule(fx.GraphModule):
    """A captured model: ATen nodes, the model's own parameter names, called like the model.

    Attributes:
        interface: What its inputs must be; every call is checked against it, except while it is
            traced. None lets anything through.
    """

    interface: Interface | None = None

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
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
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
    if compiled:
        clone.graph = graph
    else:
        clone._graph = graph
        graph.owning_module = clone
    return clone


def _unpickled(rebuild: Callable[..., fx.GraphModule], arguments: tuple[Any, ...]) -> Any:
    """A captured module from what was pickled. What was known of its nodes is not kept."""
    plain = rebuild(*arguments)
    module = CapturedModule(nn.Module(), fx.Graph())
    _share_tables(plain, module, {id(plain): module})
    module.training, module.meta = plain.training, dict(plain.meta)
    module.interface = plain.__dict__["interface"]
    module.graph = plain.graph
    return module


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Sizes of the node's tensor at the example inputs, also where an axis is dynamic."""
    return example_shape(_value_of(node))


def example_shape(value: Tensor | TensorMeta) -> tuple[int, ...]:
    """Sizes of a fake tensor at the example inputs."""
    return tuple(example_size(size) for size in value.shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """Element type of the node's tensor."""
    return _value_of(node).dtype


def dynamic_dims(node: fx.Node) -> frozenset[int]:
    """The axes of the node's tensor whose size follows the inputs."""
    value = _value_of(node)
    if isinstance(value, TensorMeta):
        return value.dynamic
    return frozenset(dim for dim, size in enumerate(value.shape) if is_free(size))


def is_free(size: int | torch.SymInt) -> bool:
    """Whether a size follows the inputs; a symbol that the model pinned to one value does not."""
    return not isinstance(size, int) and size.node.maybe_as_int() is None


def is_tensor(node: fx.Node) -> bool:
    """Whether the node yields one tensor (and not a tuple, a number or nothing)."""
    return isinstance(node.meta.get("val"), Tensor | TensorMeta)


def is_size(node: fx.Node) -> bool:
    """Whether the node yields a whole number, such as the size of an axis."""
    value = node.meta.get("val")
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def parameter_of(node: object) -> str | None:
    """The name of the parameter or buffer that a node reads; None for other nodes."""
    if isinstance(node, fx.Node) and node.op == "get_attr" and is_tensor(node):
        return str(node.target)
    return None


def tensor_of(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that a ``get_attr`` node reads.

    Raises:
        FxCompressError: The node reads no tensor of this module.
    """
    value = find_tensor(module, str(node.target)) if node.op == "get_attr" else None
    if value is None:
        raise FxCompressError(
            f"node '{node.name}' ({node.op} of {node.target}) reads no parameter or buffer; "
            "ask only for nodes that `parameter_of` has a name for"
        )
    return value


def find_tensor(module: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of this name, or None."""
    prefix, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(prefix)
    except AttributeError:
        return None
    value = getattr(owner, leaf, None)
    return value if isinstance(value, Tensor) else None


def set_tensor(module: nn.Module, name: str, value: Tensor, *, persistent: bool = True) -> None:
    """Register a parameter or buffer under a dotted name, making the modules on the way.

    A tensor of that name is replaced where it stands in the order of names. An `nn.Parameter` stays
    one, anything else is a buffer.
    """
    *path, leaf = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(value, nn.Parameter):
        owner._buffers.pop(leaf, None)
        owner.register_parameter(leaf, value)
    else:
        owner._parameters.pop(leaf, None)
        owner.register_buffer(leaf, value, persistent=persistent)


def _guarded(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that looks at its inputs first."""

    @functools.wraps(forward)
    def checked(self: CapturedModule, *args: Any, **kwargs: Any) -> Any:
        if self.interface is not None and (assuming() or not being_traced()):
            self.interface.check(args, kwargs)
        return forward(self, *args, **kwargs)

    return checked


def _value_of(node: fx.Node) -> Tensor | TensorMeta:
    value = node.meta.get("val")
    if not isinstance(value, Tensor | TensorMeta):
        raise FxCompressError(
            f"node '{node.name}' ({node.op} of {node.target}) yields {type(value).__name__}, "
            "not one tensor; ask for shapes only where `is_tensor` holds"
        )
    return value


UNSEEN = 97
"""Stands for a size that only the values of the inputs tell (of ``x[x > 0]``)."""


def example_size(size: int | torch.SymInt) -> int:
    """A size at the example inputs."""
    # int(size) would record a guard; the hint is the size at the example inputs.
    if isinstance(size, int):
        return size
    node = size.node
    known = node.maybe_as_int()
    known = node.hint if known is None else known
    if known is None:
        env = node.shape_env
        seen = getattr(env, "backed_var_to_val", None) or env.var_to_val
        known = node.expr.xreplace({s: seen.get(s, UNSEEN) for s in node.expr.free_symbols})
    return int(known)


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
