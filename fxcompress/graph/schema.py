"""What the arguments of an ATen node are called and where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import fx
from torch._ops import OpOverload

Path = tuple[int | str, ...]
"""Where an argument stands: a place in ``args`` or a key of ``kwargs``, then places in lists."""


TENSORS = {
    "Tensor": False,
    "Optional[Tensor]": False,
    "List[Tensor]": True,
    "List[Optional[Tensor]]": True,
}
"""The types of arguments that are tensors, and whether each is a list of them."""


@dataclass(frozen=True)
class Signature:
    """What the schema of an op says, read once.

    Attributes:
        names: The arguments in order.
        defaults: Arguments that may be left out, with what they are then.
        operands: The arguments that are tensors, and whether each is a list of them.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    operands: tuple[tuple[str, bool], ...]


@cache
def signature_of(op: OpOverload) -> Signature:
    """The signature of an op."""
    arguments = op._schema.arguments
    kinds = {argument.name: str(argument.type) for argument in arguments}
    return Signature(
        names=tuple(kinds),
        defaults={a.name: a.default_value for a in arguments if a.has_default_value()},
        operands=tuple((name, TENSORS[kind]) for name, kind in kinds.items() if kind in TENSORS),
    )


def schema_of(node: fx.Node) -> Any:
    """The schema of the op that a node calls."""
    return node.target._schema  # type: ignore[union-attr]


def packet_of(node: fx.Node) -> str:
    """The name of the op without its overload, such as ``aten::linear``; empty where it is none."""
    return str(schema_of(node).name) if isinstance(node.target, OpOverload) else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen node by their schema names, defaults filled in."""
    signature = signature_of(node.target)
    given = zip(signature.names, node.args, strict=False)
    return {**signature.defaults, **dict(given), **node.kwargs}


def position(node: fx.Node, name: str) -> int | str:
    """Where the argument `name` stands: its place in ``args``, or its key in ``kwargs``."""
    place = signature_of(node.target).names.index(name)
    return place if place < len(node.args) else name


def given(node: fx.Node, name: str) -> bool:
    """Whether the argument `name` is written in the node, and not left to its default."""
    place = position(node, name)
    return isinstance(place, int) or place in node.kwargs


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Write the argument `name` of a node, and the defaults of those before it."""
    signature, named = signature_of(node.target), arguments(node)
    place = signature.names.index(name)
    before = [named[other] for other in signature.names[:place]]
    node.args = (*before, value, *node.args[place + 1 :])
    node.kwargs = {
        key: own for key, own in node.kwargs.items() if key not in signature.names[: place + 1]
    }


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


def per_axis(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """A number, or a list of one, for each of `count` axes: a kernel, stride or padding."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * (count // len(given))


def operands_of(node: fx.Node) -> list[Any]:
    """The tensor operands in schema order, None for a missing one; lists are spread."""
    named = arguments(node)
    found: list[Any] = []
    for name, several in signature_of(node.target).operands:
        if several:
            found.extend(named[name])
        else:
            found.append(named.get(name))
    return found
