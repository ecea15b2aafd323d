"""What the arguments of an ATen node are called and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch._ops import OpOverload

Path = tuple[int | str, ...]
"""Where an argument stands: a place in ``args`` or a key of ``kwargs``, then places in lists."""


def schema_of(node: fx.Node) -> Any:
    """The schema of the op that a node calls."""
    return node.target._schema  # type: ignore[union-attr]


def packet_of(node: fx.Node) -> str:
    """The name of the op without its overload, such as ``aten::linear``; empty where it is none."""
    return str(schema_of(node).name) if isinstance(node.target, OpOverload) else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen node by their schema names, defaults filled in."""
    schema = schema_of(node).arguments
    values = {arg.name: arg.default_value for arg in schema if arg.has_default_value()}
    values.update({arg.name: value for arg, value in zip(schema, node.args, strict=False)})
    return values | dict(node.kwargs)


def position(node: fx.Node, name: str) -> int | str:
    """Where the argument `name` stands: its place in ``args``, or its key in ``kwargs``."""
    names = [arg.name for arg in schema_of(node).arguments]
    place = names.index(name)
    return place if place < len(node.args) else name


def given(node: fx.Node, name: str) -> bool:
    """Whether the argument `name` is written in the node, and not left to its default."""
    place = position(node, name)
    return isinstance(place, int) or place in node.kwargs


def read(node: fx.Node, path: Path) -> Any:
    """The argument at `path`."""
    head, *rest = path
    value: Any = node.args[head] if isinstance(head, int) else node.kwargs[head]
    for step in rest:
        value = value[step]
    return value


def dims(value: Any, rank: int) -> tuple[int, ...]:
    """A dim, a list of dims or None (all of them) as non-negative dims."""
    if rank == 0 or value is None or (isinstance(value, Sequence) and len(value) == 0):
        return tuple(range(rank))
    many = (value,) if isinstance(value, int) else tuple(value)
    return tuple(dim % rank for dim in many)


def operands_of(node: fx.Node) -> list[Any]:
    """The tensor operands in schema order, None for a missing one; lists are spread."""
    named = arguments(node)
    found: list[Any] = []
    for argument in schema_of(node).arguments:
        kind = str(argument.type)
        if kind in ("Tensor", "Optional[Tensor]"):
            found.append(named.get(argument.name))
        elif kind.startswith(("List[Tensor]", "List[Optional[Tensor]]")):
            found.extend(named[argument.name])
    return found
