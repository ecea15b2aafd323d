"""From an exported program to a module of ours: own tensors, no assertions, no regions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxcompress.capture.regions import inline_regions
from fxcompress.errors import CaptureError
from fxcompress.graph import (
    FIXED_MODE,
    CapturedModule,
    aten,
    find_tensor,
    mode_of,
    set_tensor,
)

_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._functional_assert_async.msg,
    aten._functional_assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    torch._assert,
}
_KEPT_META = ("val", "stack_trace", "nn_module_stack")


def assemble(program: ExportedProgram, baked: bool) -> CapturedModule:
    """Build the captured module of an exported program, in evaluation mode.

    Args:
        program: Its tensors are copied, tied ones once.
        baked: Whether the program is in the mode that its maker chose. Otherwise it was made in
            evaluation mode, and a node that trains even so does it on purpose.
    """
    source = program.module(check_guards=False)
    module = CapturedModule(nn.Module(), fx.Graph())
    for name, value, persistent in _own_tensors(program, source):
        set_tensor(module, name, value, persistent=persistent)
    for node in source.graph.find_nodes(op="get_attr"):
        if find_tensor(module, node.target) is None:
            module.set_submodule(node.target, source.get_submodule(node.target))
    module.graph = source.graph
    inline_regions(module)
    _drop_bookkeeping(module.graph)
    for node in module.graph.nodes:
        node.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
        if not baked and mode_of(node):
            node.meta[FIXED_MODE] = True
    _drop_unused_submodules(module)
    module.graph.lint()
    module.recompile()
    return module.eval()


def _own_tensors(program: ExportedProgram, source: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Each parameter, buffer and constant: name, copy (one for all tied names), persistence."""
    copies: dict[object, Tensor] = {}
    persistent = set(program.state_dict)
    for name, value in {**program.constants, **program.state_dict}.items():
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"{name} is a {type(value).__name__}, which a graph of tensors cannot hold; "
                "make it a buffer or compute it in the forward"
            )
        key = _identity(value)
        if key not in copies:
            copies[key] = _copy(value)
        yield name, copies[key], name in persistent


def _identity(value: Tensor) -> object:
    """What tied names have in common: the object, or the memory and the way it is read."""
    kind = isinstance(value, nn.Parameter)
    if value.is_meta or not value.numel():
        return id(value), kind
    return value.data_ptr(), value.device, value.dtype, value.shape, value.stride(), kind


def _copy(value: Tensor) -> Tensor:
    twin = value.detach().clone()
    if isinstance(value, nn.Parameter):
        return nn.Parameter(twin, requires_grad=value.requires_grad)
    return twin


def _drop_bookkeeping(graph: fx.Graph) -> None:
    """Drop assertions, counters of batches, and what nobody uses."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op != "call_function":
            continue
        if node.target in _ASSERTIONS or _counts_batches(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _counts_batches(node: fx.Node) -> bool:
    """Whether the node counts the batches a norm has seen, as programs in training mode do."""
    counter = node.args[0] if node.args else None
    return (
        node.target is aten.add_.Tensor
        and isinstance(counter, fx.Node)
        and counter.op == "get_attr"
        and str(counter.target).endswith("num_batches_tracked")
    )


def _drop_unused_submodules(module: CapturedModule) -> None:
    """Drop the graphs of regions that have been inlined, not the modules that hold parameters."""
    used = {node.target for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    for name, child in list(module.named_children()):
        if isinstance(child, fx.GraphModule) and name not in used:
            module.delete_submodule(name)
