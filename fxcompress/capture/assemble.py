"""From an exported program to a module of ours: own tensors, no bookkeeping, no regions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxcompress.capture.regions import inline_regions
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import FIXED_MODE, CapturedModule, aten, mode_of
from fxcompress.graph.check import check
from fxcompress.graph.parameters import find_tensor, in_place_of, set_tensor
from fxcompress.graph.sharing import memory_of, shared

_ASSERTIONS = {
    # Of dtype and device: the first follow from those of the inputs, which every call checks, the
    # second move with the program. Assertions on values are part of the program.
    aten._assert_tensor_metadata.default,
}
_KEPT_META = ("val", "stack_trace", "nn_module_stack")


def assemble(program: ExportedProgram, model: nn.Module | None) -> CapturedModule:
    """Build the captured module of an exported program, in evaluation mode; not recompiled yet.

    Args:
        program: Its tensors are `shared`, tied ones once.
        model: What the program was made of, in evaluation mode, so that a node that trains even so
            does it on purpose; None where the maker of the program chose the mode.
    """
    source = program.module(check_guards=False)
    module = CapturedModule(nn.Module(), fx.Graph())
    for name, value, persistent in _own_tensors(program, model):
        set_tensor(module, name, value, persistent=persistent)
    for node in source.graph.find_nodes(op="get_attr"):
        if find_tensor(module, node.target) is None:
            module.set_submodule(node.target, source.get_submodule(node.target))
    module.adopt(source.graph)
    inline_regions(module)
    _drop_bookkeeping(module.graph, counters=model is None)
    for node in module.graph.nodes:
        node.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
        if model is not None and mode_of(node):
            node.meta[FIXED_MODE] = True
    _drop_unused_submodules(module)
    check(module, "captured")
    return module.eval()


def _own_tensors(
    program: ExportedProgram, model: nn.Module | None
) -> Iterator[tuple[str, Tensor, bool]]:
    """Each parameter, buffer and constant: name, twin (one for all tied names), persistence."""
    copies: dict[object, Tensor] = {}
    persistent = set(program.state_dict)
    tensors = {**program.state_dict, **program.constants, **program.state_dict}
    for name in _in_order(tensors, model):
        value = tensors[name]
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"{name} is a {type(value).__name__}, which a graph of tensors cannot hold; "
                "make it a buffer or compute it in the forward"
            )
        key = _identity(value)
        if key not in copies:
            copies[key] = in_place_of(value, shared(value))
        yield name, copies[key], name in persistent


def _identity(value: Tensor) -> object:
    """What tied names have in common: the object, or the memory and the way it is read."""
    kind = isinstance(value, nn.Parameter)
    if value.is_meta or not value.numel():
        return id(value), kind
    return memory_of(value), value.device, value.dtype, value.shape, value.stride(), kind


def _in_order(names: Iterable[str], model: nn.Module | None) -> list[str]:
    """The names in the order of the model's own state; what only the graph has comes last."""
    own = []
    for path, part in model.named_modules(remove_duplicate=False) if model is not None else ():
        leaves = (*part._parameters, *part._buffers)
        own += [f"{path}.{leaf}" if path else leaf for leaf in leaves]
    place = {name: index for index, name in enumerate(own)}
    return sorted(names, key=lambda name: place.get(name, len(place)))


def _drop_bookkeeping(graph: fx.Graph, counters: bool) -> None:
    """Drop assertions, what nobody uses and, if asked to, what counts batches: `train` does."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op != "call_function":
            continue
        if node.target in _ASSERTIONS or (counters and _counts_batches(node)):
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
