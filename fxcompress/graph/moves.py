"""Operators that only hand on entries: copies, views, and lookups by index; and their axes."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from fxcompress.graph.metadata import dtype_of, example_size, is_size, shape_of
from fxcompress.graph.schema import arguments, packet_of

_COPIES = frozenset(
    f"aten::{name}"
    for name in ("_to_copy", "clone", "contiguous", "lift_fresh_copy", "to", "type_as")
)


def is_copy(node: fx.Node) -> bool:
    """Whether a node gives every entry of its first operand where it is, in memory or of a type of
    its own.
    """
    return packet_of(node) in _COPIES


def is_view(node: fx.Node) -> bool:
    """Whether torch says that a node's operator gives entries of its operand, in their memory."""
    return isinstance(node.target, OpOverload) and bool(node.target.is_view)


def moves(node: fx.Node) -> bool:
    """Whether a node gives entries of its first operand as they are, wherever it puts them: a copy,
    a view, a lookup by index, or dropout in evaluation.
    """
    packet = packet_of(node)
    if packet == "aten::dropout":
        return not arguments(node)["train"]
    return is_copy(node) or is_view(node) or packet == "aten::index"


def axis_before(node: fx.Node, dim: int) -> int | None:
    """Which axis of its first operand the axis `dim` of a node is, which has more than one entry.

    None where the node does more than copy or put the axes in an order. A view of an empty tensor
    shows that by its strides: axes of more than one entry have strides of their own.
    """
    if is_copy(node):
        return dim
    source, *others = node.all_input_nodes
    if not is_view(node) or not all(map(is_size, others)):
        return None
    before = torch.empty(shape_of(source), dtype=dtype_of(source), device="meta")
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: before if n is source else example_size(n.meta["val"])
    )
    after = node.target(*args, **kwargs)  # type: ignore[operator]
    if not isinstance(after, torch.Tensor):
        return None  # cut into several
    old, new = (list(zip(t.shape, t.stride(), strict=True)) for t in (before, after))
    return old.index(new[dim]) if sorted(old) == sorted(new) else None
