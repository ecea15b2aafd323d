"""Whether a value is what an annotation says: types, literals, unions, containers, protocols.

An annotation is taken as Python's documentation of types has it, but for these: a flag is no
number; numbers are finite; the numbers of numpy are numbers, tensors and arrays are none; text is
no sequence of texts; a class is no function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from fxcompress.arguments.words import either, with_article


class Refused(Exception):  # noqa: N818 - caught here, and told of as another
    """A value that is not of a kind.

    Attributes:
        place: Where it lies in what was given: ``[1]``, or nothing.
        wanted: The kind, in words.
        value: The value.
        hint: What to write instead, or nothing.
    """

    def __init__(self, wanted: str, value: object, hint: str = "", place: str = "") -> None:
        super().__init__(wanted)
        self.wanted, self.value, self.hint, self.place = wanted, value, hint, place


@dataclass(frozen=True)
class Kind:
    """How annotations of one kind are matched and told of."""

    fit: Callable[[Any, Any], Any]
    words: Callable[[Any], str]


KINDS: dict[Any, Kind] = {}
"""By type, or by the origin of a generic one: `scalars` and `containers` have some of them."""


def fit(kind: Any, value: Any) -> Any:
    """The value as the annotation has it: numbers of numpy as Python's, lists for tuples as tuples.

    Args:
        kind: An annotation, resolved.
        value: What was given.

    Raises:
        Refused: It is of another kind.
    """
    return _of(kind).fit(kind, value)


def words(kind: Any) -> str:
    """What an annotation accepts, in words."""
    return _of(kind).words(kind)


def _of(kind: Any) -> Kind:
    origin = get_origin(kind)
    known = KINDS.get(kind if origin is None else origin)
    if known is not None:
        return known
    if isinstance(kind, TypeVar):
        return KINDS[TypeVar]
    if getattr(kind, "_is_protocol", False):
        return _PROTOCOL
    return _CLASS if isinstance(origin or kind, type) else _ANYTHING


def refuse(kind: Any, value: Any, hint: str = "") -> Refused:
    """The refusal of a value that is not of a kind, to be raised."""
    if not hint and isinstance(value, type):
        hint = f"that is the class, write {value.__name__}(...)"
    return Refused(words(kind), value, hint)


def _fit_class(kind: Any, value: Any) -> Any:
    if isinstance(value, get_origin(kind) or kind):
        return value
    raise refuse(kind, value)


def _fit_union(kind: Any, value: Any) -> Any:
    """As the first of the kinds that takes it; of the refusals the one that came farthest."""
    refusals = []
    for each in get_args(kind):
        try:
            return fit(each, value)
        except Refused as refused:
            # Without its frames, which would keep what their callers hold.
            refusals.append(refused.with_traceback(None))
    deepest = max(refusals, key=lambda refused: len(refused.place))
    if deepest.place:
        raise deepest
    raise refuse(kind, value, next((each.hint for each in refusals if each.hint), ""))


def _fit_annotated(kind: Any, value: Any) -> Any:
    inner, *conditions = get_args(kind)
    try:
        found = fit(inner, value)
    except Refused as refused:
        if refused.place:
            raise
        raise refuse(kind, value, refused.hint) from None
    if all(condition.holds(found) for condition in conditions):
        return found
    raise refuse(kind, value)


def _fit_protocol(kind: Any, value: Any) -> Any:
    if isinstance(value, type) or any(not hasattr(value, name) for name in _members(kind)):
        raise refuse(kind, value)
    return value


def _members(kind: Any) -> list[str]:
    own = (name for base in kind.__mro__[:-1] for name in vars(base))
    return sorted({name for name in own if not name.startswith("_")})


def _annotated_words(kind: Any) -> str:
    inner, *conditions = get_args(kind)
    return " ".join([words(inner), *(condition.words for condition in conditions)])


def _class_words(kind: Any) -> str:
    return with_article((get_origin(kind) or kind).__name__)


_ANYTHING = Kind(lambda _, value: value, lambda _: "anything")
_CLASS = Kind(_fit_class, _class_words)
_PROTOCOL = Kind(
    _fit_protocol, lambda kind: f"a {kind.__name__} (an object with {', '.join(_members(kind))})"
)
_UNION = Kind(_fit_union, lambda kind: either(map(words, get_args(kind))))
KINDS |= {
    Any: _ANYTHING,
    object: _ANYTHING,
    None: Kind(lambda _, value: _fit_class(NoneType, value), lambda _: "None"),
    NoneType: Kind(_fit_class, lambda _: "None"),
    Union: _UNION,
    UnionType: _UNION,
    Annotated: Kind(_fit_annotated, _annotated_words),
    TypeVar: Kind(
        lambda kind, value: fit(kind.__bound__ or Any, value),
        lambda kind: words(kind.__bound__ or Any),
    ),
}
