"""A captured graph as JSON, and back.

Nodes, their arguments, what is known of their values, and the calling convention.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import (
    TensorMeta,
    dtype_of,
    dynamic_dims,
    example_shape,
    is_tensor,
    shape_of,
)
from fxcompress.graph.modes import MODE_META, NORMS
from fxcompress.io.arguments import Ref, check_call
from fxcompress.io.operators import NAMES, function_named
from fxcompress.io.trees import dump_spec, load_spec
from fxcompress.io.values import PLAIN_KINDS, Decoder, Encoder, Json

if TYPE_CHECKING:
    from fxcompress.io.replay import Call
    from fxcompress.io.schema import Graph, Manifest, Meta, Node, Value

_GLOBAL = frozenset({"self", "torch", "operator", "math", *fx.graph._custom_builtins})
"""What the code of a graph calls other things by."""


def dump_graph(module: CapturedModule, encoder: Encoder) -> Json:
    """The graph of `module` as JSON.

    Raises:
        FxCompressError: A node reads a module, holds a graph of its own or calls a function without
        a name.
    """
    codegen = module.graph._codegen
    if not isinstance(codegen, fx.graph._PyTreeCodeGen):
        raise FxCompressError(
            f"the graph has the calling convention {type(codegen).__name__}, not that of a "
            "captured model; save what fxcompress.compile returned"
        )
    info = codegen.pytree_info
    return {
        "inputs": list(info.orig_args),
        "in_spec": dump_spec(info.in_spec, "the inputs"),
        "out_spec": None if info.out_spec is None else dump_spec(info.out_spec, "the outputs"),
        "nodes": [_dump_node(node, encoder) for node in module.graph.nodes],
    }


def check_graph(manifest: Manifest, allow: Collection[str]) -> list[Call]:
    """The nodes of a manifest, checked one by one; none is made.

    Args:
        manifest: What the file says.
        allow: Namespaces or names of operators beside those that only compute.

    Raises:
        LoadError: A node reads what is not there or comes later, calls what it may not, or calls it
            with what it does not take.
    """
    from fxcompress.io.replay import Call

    numbers = _whole_numbers(manifest)
    known = {entry.name for entry in manifest.tensors}, {entry.name for entry in manifest.modules}
    refs: dict[str, Ref] = {}
    decoder = Decoder({}, refs, kinds=PLAIN_KINDS | {"dict", "node"})
    calls = []
    for node in manifest.graph.nodes:
        where = f"node '{node.name}'"
        args, kwargs = decoder.decode(node.args), decoder.decode(node.kwargs)
        if type(args) is not tuple or type(kwargs) is not dict:
            raise LoadError(f"{where} has no arguments; the manifest is damaged")
        target = _checked_target(node, args, kwargs, known, allow)
        if node.op == "call_function":
            assert callable(target)
            check_call(target, args, kwargs, where)
        _check_counter(node, target, numbers)
        calls.append(Call(node.op, node.name, target, args, kwargs, node.meta.val))
        refs[node.name] = Ref(node.name, node.meta.val)
    _check_convention(manifest.graph, calls)
    return calls


def _checked_target(
    node: Node,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    known: tuple[set[str], set[str]],
    allow: Collection[str],
) -> str | Callable[..., Any]:
    """What the node reads or calls; its arguments as far as they follow from the kind of node."""
    if node.op == "call_function":
        return function_named(node.target, allow)
    tensors, modules = known
    good = {
        "placeholder": node.target.isidentifier() and not args,
        "get_attr": node.target in tensors and not args,
        "call_module": node.target in modules and _takes_one_tensor(args),
        "output": node.target == "output" and len(args) == 1,
    }[node.op]
    if kwargs or not good or keyword.iskeyword(node.target):
        raise LoadError(
            f"node '{node.name}' ({node.op} of {node.target[:80]}) reads nothing that the manifest "
            "holds, or has arguments of another kind of node; the manifest is damaged"
        )
    return node.target


def _whole_numbers(manifest: Manifest) -> set[str]:
    """The tensors that hold one whole number, by every name."""
    found: set[str] = set()
    for entry in manifest.tensors:
        kind = getattr(entry, "dtype", None), getattr(entry, "shape", None)
        if kind == ("int64", []) or getattr(entry, "alias_of", None) in found:
            found.add(entry.name)
    return found


def _check_counter(node: Node, target: object, numbers: Collection[str]) -> None:
    """What a norm counts its batches in is a whole number that the manifest holds."""
    counts = node.meta.counter is not None
    if (counts and (target not in NORMS or node.meta.counter not in numbers)) or (
        node.meta.cumulative and not counts
    ):
        raise LoadError(
            f"node '{node.name}' counts batches in {node.meta.counter!r}, which is no number that "
            "the manifest holds, or is no norm; the manifest is damaged"
        )


def _takes_one_tensor(args: Sequence[Any]) -> bool:
    """A small module takes one tensor or none; what it gives, `modules.check_call` sees."""
    one = len(args) == 1 and isinstance(args[0], Ref) and hasattr(args[0].value, "shape")
    return one or not args


def _check_convention(graph: Graph, calls: Sequence[Call]) -> None:
    """Every input once, and as many outputs as their structure says."""
    inputs, outputs = load_spec(graph.in_spec), calls[-1].args[0]
    placeholders = [call for call in calls if call.op == "placeholder"]
    good = len(placeholders) == inputs.num_leaves
    names = _input_names(inputs)
    good = good and len(names) == len(graph.inputs)
    pairs = zip(names, graph.inputs, strict=False)
    good = good and all(name in (None, given) for name, given in pairs)
    good = good and _are_apart(placeholders, calls) and not _GLOBAL & set(graph.inputs)
    if graph.out_spec is not None:
        good = good and isinstance(outputs, list | tuple)
        good = good and load_spec(graph.out_spec).num_leaves == len(outputs)
    if not good:
        raise LoadError("the inputs or outputs are not those of the graph; the manifest is damaged")


def _are_apart(placeholders: Sequence[Call], calls: Sequence[Call]) -> bool:
    """Whether the variables of inputs are none of other nodes, and hide no module."""
    own = {str(call.target): call.name for call in placeholders}
    others = {call.name for call in calls if own.get(call.name) != call.name}
    return len(own) == len(placeholders) and not own.keys() & (others | _GLOBAL)


def _input_names(spec: pytree.TreeSpec) -> list[str | None]:
    """The names that the calling convention gives to inputs; None where it takes any."""
    parts = spec.children() if spec.type is tuple else []
    if len(parts) == 2 and parts[0].type is tuple and parts[1].type is dict:
        return [*[None] * parts[0].num_children, *parts[1].context]
    raise LoadError("the inputs are not (args, kwargs); the manifest is damaged")


def load_graph(graph: Graph, calls: Sequence[Call], home: torch.device) -> fx.Graph:
    """The graph that `dump_graph` wrote, of nodes that were checked."""
    made = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    decoder = Decoder({}, nodes, home, PLAIN_KINDS | {"dict", "node"})
    for entry, call in zip(graph.nodes, calls, strict=True):
        args, kwargs = decoder.decode(entry.args), decoder.decode(entry.kwargs)
        if entry.op == "output":
            node = made.output(args[0])
        else:
            node = made.create_node(entry.op, call.target, args, kwargs, entry.name)
        if node.name != entry.name:
            raise LoadError(f"'{entry.name}' is no name for a node; the manifest is damaged")
        node.meta = _load_meta(entry.meta)
        nodes[entry.name] = node
    out_spec = None if graph.out_spec is None else load_spec(graph.out_spec)
    info = fx.graph._PyTreeInfo(list(graph.inputs), load_spec(graph.in_spec), out_spec)
    made.set_codegen(fx.graph._PyTreeCodeGen(info))
    return made


def _dump_node(node: fx.Node, encoder: Encoder) -> Json:
    where = f"node '{node.name}'"
    return {
        "op": node.op,
        "name": node.name,
        "target": _dump_target(node),
        "args": encoder.encode(tuple(node.args), where),
        "kwargs": encoder.encode(dict(node.kwargs), where),
        "meta": _dump_meta(node),
    }


def _dump_target(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return str(target)
    if target in NAMES:
        return NAMES[target]
    name = getattr(target, "__qualname__", str(target))
    raise FxCompressError(
        f"node '{node.name}' calls {name}, which is no registered operator, so no file can "
        "name it; register it with torch.library.custom_op, or save before the pass that put it in"
    )


def _dump_meta(node: fx.Node) -> Json:
    """The value's shape, the modes that stay, and the module the node came from."""
    meta: dict[str, Json] = {}
    if is_tensor(node):
        meta["val"] = _dump_value(node.meta["val"], node)
    elif "val" in node.meta:
        meta["val"] = _dump_value(node.meta["val"])
    if "nn_module_stack" in node.meta:
        stack = node.meta["nn_module_stack"]
        meta["stack"] = [[key, path, _type_name(kind)] for key, (path, kind) in stack.items()]
    return meta | {key: node.meta[key] for key in MODE_META if node.meta.get(key)}


def _dump_value(value: object, node: fx.Node | None = None) -> Json:
    if isinstance(value, Tensor | TensorMeta):
        holder = node or _holder(value)
        dtype = str(dtype_of(holder)).removeprefix("torch.")
        return {
            "shape": list(shape_of(holder)),
            "dtype": dtype,
            "dynamic": sorted(dynamic_dims(holder)),
        }
    if isinstance(value, list | tuple):
        return [_dump_value(item) for item in value]
    if isinstance(value, torch.SymInt):
        return example_shape(TensorMeta((value,), torch.int64))[0]  # type: ignore[arg-type]
    if isinstance(value, torch.SymFloat | torch.SymBool):
        value = value.node.hint
    return value if isinstance(value, bool | int) or _is_finite(value) else None


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _holder(value: object) -> fx.Node:
    """A node of this value alone, for the accessors that read nodes."""
    node = fx.Graph().placeholder("value")
    node.meta["val"] = value
    return node


def _type_name(kind: object) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__qualname__", str(kind))


def _load_meta(meta: Meta) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "val" in meta.model_fields_set:
        found["val"] = _load_value(meta.val)
    if meta.stack is not None:
        found["nn_module_stack"] = {key: (path, kind) for key, path, kind in meta.stack}
    return found | {key: getattr(meta, key) for key in MODE_META if getattr(meta, key)}


def _load_value(value: Value) -> Any:
    if isinstance(value, list):
        return tuple(_load_value(item) for item in value)
    if value is None or isinstance(value, bool | int | float):
        return value
    dtype = getattr(torch, value.dtype)
    return TensorMeta(tuple(value.shape), dtype, frozenset(value.dynamic))
