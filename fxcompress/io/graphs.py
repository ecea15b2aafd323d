"""A captured graph as JSON, and back.

Nodes, their arguments, what is known of their values, and the calling convention.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.graph import CapturedModule, TensorMeta, dtype_of, dynamic_dims, is_tensor, shape_of
from fxcompress.io.trees import dump_spec, load_spec
from fxcompress.io.values import Decoder, Encoder, Json

_OPERATORS = (
    "abs add and_ eq floordiv ge getitem gt invert le lt mod mul ne neg not_ or_ pos pow sub "
    "truediv xor"
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "trunc")},
    **{f"builtins.{name}": getattr(builtins, name) for name in ("abs", "max", "min", "round")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
        if hasattr(torch, name)
    },
}
"""The functions beside operators that a graph may call: a file can name no others."""
_NAMES = {function: name for name, function in reversed(_FUNCTIONS.items())}


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


def load_graph(data: Json, tensors: Mapping[str, Tensor], home: torch.device) -> fx.Graph:
    """The graph that `dump_graph` wrote."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    decoder = Decoder(tensors, nodes, home)
    for entry in data["nodes"]:
        target = _load_target(entry["op"], entry["target"])
        args, kwargs = decoder.decode(entry["args"]), decoder.decode(entry["kwargs"])
        if entry["op"] == "output":
            node = graph.output(args[0])
        else:
            node = graph.create_node(entry["op"], target, args, kwargs, entry["name"])
        node.meta = _load_meta(entry["meta"], decoder)
        nodes[entry["name"]] = node
    out_spec = None if data["out_spec"] is None else load_spec(data["out_spec"])
    info = fx.graph._PyTreeInfo(data["inputs"], load_spec(data["in_spec"]), out_spec)
    graph.set_codegen(fx.graph._PyTreeCodeGen(info))
    return graph


def _dump_node(node: fx.Node, encoder: Encoder) -> Json:
    where = f"node '{node.name}'"
    return {
        "op": node.op,
        "name": node.name,
        "target": _dump_target(node),
        "args": encoder.encode(tuple(node.args), where),
        "kwargs": encoder.encode(dict(node.kwargs), where),
        "meta": _dump_meta(node, encoder),
    }


def _dump_target(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return str(target)
    if target in _NAMES:
        return _NAMES[target]
    name = getattr(target, "__qualname__", str(target))
    raise FxCompressError(
        f"node '{node.name}' calls {name}, which is no registered operator, so no file can "
        "name it; register it with torch.library.custom_op, or save before the pass that put it in"
    )


def _load_target(op: str, name: str) -> Any:
    if op != "call_function":
        return name
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.rpartition(".")
    found = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
    if not isinstance(found, OpOverload):
        raise LoadError(
            f"the graph calls {name}, which is not registered in this process; "
            f"import the package that defines torch.ops.{namespace} before loading"
        )
    return found


def _dump_meta(node: fx.Node, encoder: Encoder) -> Json:
    """The value's shape, the modes that stay, and the module the node came from."""
    meta: dict[str, Json] = {}
    if is_tensor(node):
        meta["val"] = _dump_value(node.meta["val"], node)
    elif "val" in node.meta:
        meta["val"] = _dump_value(node.meta["val"])
    if "nn_module_stack" in node.meta:
        stack = node.meta["nn_module_stack"]
        meta["stack"] = [[key, path, _type_name(kind)] for key, (path, kind) in stack.items()]
    plain = {
        key: value
        for key, value in node.meta.items()
        if isinstance(value, bool | int | float | str) and key not in ("val", "stack_trace")
    }
    return {**meta, "plain": encoder.encode(plain, f"node '{node.name}'")}


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
        return int(value.node.hint)
    if isinstance(value, torch.SymFloat | torch.SymBool):
        return value.node.hint
    return value if isinstance(value, bool | int | float) else None


def _holder(value: object) -> fx.Node:
    """A node of this value alone, for the accessors that read nodes."""
    node = fx.Graph().placeholder("value")
    node.meta["val"] = value
    return node


def _type_name(kind: object) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__qualname__", str(kind))


def _load_meta(data: Json, decoder: Decoder) -> dict[str, Any]:
    meta: dict[str, Any] = decoder.decode(data["plain"])
    if "val" in data:
        meta["val"] = _load_value(data["val"], decoder)
    if "stack" in data:
        meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in data["stack"]}
    return meta


def _load_value(data: Json, decoder: Decoder) -> Any:
    if isinstance(data, list):
        return tuple(_load_value(item, decoder) for item in data)
    if isinstance(data, dict):
        dtype = decoder.decode({"dtype": data["dtype"]})
        return TensorMeta(tuple(data["shape"]), dtype, frozenset(data["dynamic"]))
    return data
