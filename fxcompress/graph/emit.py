"""New nodes that know their shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from fxcompress.errors import FxCompressError

_ORIGIN = ("stack_trace", "nn_module_stack")


def emit(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """Insert a call at the insertion point, with the origin of `like` and a value of its own."""
    node = graph.call_function(target, args)
    node.meta = {key: like.meta[key] for key in _ORIGIN if key in like.meta}
    with torch.no_grad():
        node.meta["val"] = target(*fx.node.map_arg(args, _fake_value))
    return node


def _fake_value(node: fx.Node) -> Any:
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else (value,)
    if all(isinstance(part, FakeTensor | int | torch.SymInt) for part in parts):
        return value
    raise FxCompressError(
        f"node '{node.name}' carries a {type(value).__name__}; "
        "canonicalize a module as it was captured, before any pass has changed it"
    )
