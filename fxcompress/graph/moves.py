"""Operators that only hand on entries: copies, views, and lookups by index."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

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
