"""The graph of a compiled program as torch.onnx takes it, without tracing it once more.

torch.onnx lowers an `ExportedProgram` by tracing it, so all it needs of one is a flat graph whose
inputs have sizes. A captured graph is one already. Where it says less than a trace would find out
(relations between sizes, state that is written to, small modules beside the operators), it is not
handed over, and torch.export traces the module.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch._export.verifier import TrainingIRVerifier
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from fxcompress.export.onnx.exportable import Inputs
from fxcompress.export.onnx.samples import resized
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.metadata import is_free, is_tensor
from fxcompress.graph.parameters import find_tensor


def handed_over(module: nn.Module, inputs: Inputs) -> ExportedProgram | None:
    """The program's own graph with flat inputs and outputs, or None where it has to be traced.

    Args:
        module: On the CPU and in evaluation mode.
        inputs: The example inputs.
    """
    if not isinstance(module, CapturedModule) or not _is_plain(module, inputs):
        return None
    sizes = _sizes_apart(module, inputs)
    if sizes is None:
        return None
    clone = clone_graph(module, compiled=False)
    graph = clone.graph
    graph.set_codegen(CodeGen())
    parameters, state = _lifted(clone)
    given, outputs = _inputs(graph, inputs, set(parameters)), _outputs(graph)
    for node in graph.nodes:
        if node.op == "call_function":
            node.meta["val"] = None  # the trace makes its own
    # It imports sympy, which is slow.
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True, export=True)
    for node, name in parameters.items():
        node.meta["val"] = mode.from_tensor(state[name], static_shapes=True)
    for node, tensor, free in zip(given, resized(inputs, sizes), inputs.dynamic, strict=True):
        # Of one symbol are those of one size, and those alone.
        kinds = [DimDynamic.DUCK if d in free else DimDynamic.STATIC for d in range(tensor.ndim)]
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=kinds)
        node.meta["val"] = mode.from_tensor(tensor, symbolic_context=context)
    specs = [_read(node, name, clone) for node, name in parameters.items()]
    specs += [InputSpec(InputKind.USER_INPUT, TensorArgument(n.name), None) for n in given]
    return ExportedProgram(
        fx.GraphModule(nn.Module(), graph),
        graph,
        ExportGraphSignature(
            specs,
            [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in outputs],
        ),
        state,
        {},
        [_calling(inputs, outputs)],
        (inputs.tensors, {}),
        {},
        verifiers=[TrainingIRVerifier],
    )


def keeps_free(program: ExportedProgram, inputs: Inputs) -> bool:
    """Whether every free dimension has stayed free, and apart from the others, while the program
    was lowered.
    """
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    symbols: dict[str, set[str]] = {}
    for name, free in zip(names, inputs.dynamic, strict=True):
        shape = nodes[str(name)].meta["val"].shape
        for dim, label in free.items():
            if not is_free(shape[dim]):
                return False
            symbols.setdefault(label, set()).add(str(shape[dim].node.expr))
    found = [symbol for own in symbols.values() for symbol in own]
    return len(set(found)) == len(symbols) == len(found)


def _is_plain(module: CapturedModule, inputs: Inputs) -> bool:
    """Whether the graph alone says what a trace would."""
    taken = module.interface
    if taken is None or taken.conditions or any(size.equals for size in taken.sizes.values()):
        return False
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    # A tensor that goes by another name than its first is tied.
    return (
        taken.spec == inputs.spec and read <= own and all(map(_is_plain_node, module.graph.nodes))
    )


def _is_plain_node(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op == "output":
        given = node.all_input_nodes
        return len(given) == len(_leaves(node)) and all(n.op == "call_function" for n in given)
    if node.op == "placeholder":
        return is_tensor(node) or not node.users
    return node.op == "call_function" and not _writes_to_state(node)


def _writes_to_state(node: fx.Node) -> bool:
    """Whether an operator writes into an input, a parameter or a buffer, or into a view of one."""
    if not isinstance(node.target, OpOverload):
        return False
    schema = node.target._schema
    if not schema.is_mutable:
        return False
    source = node.args[0]
    while isinstance(source, fx.Node) and source.op == "call_function":
        target = source.target
        if isinstance(target, OpOverload) and not any(
            value.alias_info for value in target._schema.returns
        ):
            return False
        source = source.args[0]
    return True


def _lifted(module: CapturedModule) -> tuple[dict[fx.Node, str], dict[str, Tensor]]:
    """Make inputs of the parameters and buffers that the graph reads, in the module's own order."""
    graph = module.graph
    readers: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.find_nodes(op="get_attr"):
        readers[str(node.target)].append(node)
    own = (*module.named_parameters(), *module.named_buffers())
    state = {name: tensor for name, tensor in own if name in readers}
    nodes: dict[fx.Node, str] = {}
    with graph.inserting_before(next(iter(graph.nodes))):
        for name in state:
            nodes[graph.placeholder(f"p_{name.replace('.', '_')}")] = name
    for node, name in nodes.items():
        for reader in readers[name]:
            reader.replace_all_uses_with(node)
            graph.erase_node(reader)
    return nodes, state


def _read(node: fx.Node, name: str, module: nn.Module) -> InputSpec:
    if isinstance(find_tensor(module, name), nn.Parameter):
        return InputSpec(InputKind.PARAMETER, TensorArgument(node.name), name)
    return InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)


def _inputs(graph: fx.Graph, inputs: Inputs, lifted: set[fx.Node]) -> list[fx.Node]:
    """The inputs that are tensors; the others, which nothing reads, go."""
    own = [node for node in graph.find_nodes(op="placeholder") if node not in lifted]
    pairs = list(zip(own, inputs.leaves, strict=True))
    for node, leaf in pairs:
        if not isinstance(leaf, Tensor):
            graph.erase_node(node)
    return [node for node, leaf in pairs if isinstance(leaf, Tensor)]


def _sizes_apart(module: CapturedModule, inputs: Inputs) -> dict[str, int] | None:
    """Sizes of the free dimensions near the example's, each another one, or None."""
    assert module.interface is not None
    found: dict[str, int] = {}
    for label, size in inputs.sizes().items():
        known = module.interface.sizes.get(label)
        if known is None:
            return None
        high = size + len(found) + 2 if known.high is None else known.high
        tries = (*range(max(2, size), high + 1), *range(size - 1, max(2, known.low) - 1, -1))
        free = next((one for one in tries if one not in found.values()), None)
        if free is None:
            return None
        found[label] = free
    return found


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    (node,) = graph.find_nodes(op="output")
    leaves = [leaf for leaf in _leaves(node) if is_tensor(leaf)]
    node.args = (tuple(leaves),)
    return leaves


def _leaves(output: fx.Node) -> list[fx.Node]:
    return [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]


def _calling(inputs: Inputs, outputs: Sequence[fx.Node]) -> ModuleCallEntry:
    """The calling convention: a tuple of tensors in, a tuple of tensors out."""
    taken = pytree.tree_structure((inputs.tensors, {}))
    given = pytree.tree_structure((0,) * len(outputs))
    return ModuleCallEntry("", ModuleCallSignature([], [], taken, given, None))
