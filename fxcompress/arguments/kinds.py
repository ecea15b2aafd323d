"""Whether a value is what an annotation says: types, literals, unions, containers, protocols.

An annotation is taken as Python's documentation of types has it, but for these: a flag is no
number; numbers are finite; the numbers of numpy are numbers, tensors and arrays are none; text is
no sequence of texts; a class is no function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from fxcompress.arguments.words import either, nearest, shown, with_article

_MISS = (str, bytes)
_SHORT = 60
_WIDEST = 2**63


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
class _Kind:
    """How annotations of one kind are matched and told of."""

    fit: Callable[[Any, Any], Any]
    words: Callable[[Any], str]


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


def _of(kind: Any) -> _Kind:
    origin = get_origin(kind)
    known = _KINDS.get(kind if origin is None else origin)
    if known is not None:
        return known
    if isinstance(kind, TypeVar):
        return _KINDS[TypeVar]
    if getattr(kind, "_is_protocol", False):
        return _PROTOCOL
    return _CLASS if isinstance(origin or kind, type) else _ANYTHING


def _refuse(kind: Any, value: Any, hint: str = "") -> Refused:
    if not hint and isinstance(value, type):
        hint = f"that is the class, write {value.__name__}(...)"
    return Refused(words(kind), value, hint)


def _fit_number(kind: Any, value: Any) -> Any:
    """An int or a float as Python has it; an int stays one where a float may stand."""
    exact = kind is int
    if isinstance(value, bool) or not isinstance(value, Integral if exact else Real):
        raise _refuse(kind, value, _number_hint(value))
    number = _plain(value)
    if not exact and not -_WIDEST < number < _WIDEST:  # what torch takes as an int
        number = number if isinstance(number, float) else _as_float(number)
        if not math.isfinite(number):
            raise _refuse(kind, value)
    return number


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _plain(value: Any) -> int | float:
    return int(value) if isinstance(value, Integral) else float(value)


def _number_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            return f"write {float(value):g} without quotes"
        except ValueError:
            return ""
    return "write its item()" if hasattr(value, "item") and hasattr(value, "dtype") else ""


def _fit_bool(kind: Any, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise _refuse(kind, value, "write True or False")


def _fit_class(kind: Any, value: Any) -> Any:
    if isinstance(value, get_origin(kind) or kind):
        return value
    raise _refuse(kind, value)


def _fit_literal(kind: Any, value: Any) -> Any:
    choices = get_args(kind)
    plain = _plain(value) if isinstance(value, Real) and not isinstance(value, bool) else value
    for choice in choices:
        if type(choice) is type(plain) and choice == plain:
            return choice
    raise _refuse(kind, value, nearest(value, choices))


def _fit_union(kind: Any, value: Any) -> Any:
    """As the first of the kinds that takes it; of the refusals the one that came farthest."""
    refusals = []
    for each in get_args(kind):
        try:
            return fit(each, value)
        except Refused as refused:
            refusals.append(refused)
    deepest = max(refusals, key=lambda refused: len(refused.place))
    if deepest.place:
        raise deepest
    raise _refuse(kind, value, next((each.hint for each in refusals if each.hint), ""))


def _fit_annotated(kind: Any, value: Any) -> Any:
    inner, *conditions = get_args(kind)
    try:
        found = fit(inner, value)
    except Refused as refused:
        if refused.place:
            raise
        raise _refuse(kind, value, refused.hint) from None
    if all(condition.holds(found) for condition in conditions):
        return found
    raise _refuse(kind, value)


def _fit_items(kind: Any, value: Any) -> Any:
    """A container of values of one kind; its own type stays, unless a value had to be converted."""
    origin, (item, *_) = get_origin(kind), get_args(kind) or (Any,)
    array = hasattr(value, "__array__")  # one may be gone through, but is one value
    wrong = array or isinstance(value, (*_MISS, Mapping, type))
    if wrong or not isinstance(value, _accepted(origin)):
        raise _refuse(kind, value, _container_hint(item, value))
    if item is Any:
        return value  # not touched: it may be possible to go through it only once
    if not isinstance(value, Collection):
        value = list(value)
    found = [_fit_at(item, each, f"[{place}]") for place, each in enumerate(value)]
    if all(a is b for a, b in zip(found, value, strict=True)):
        return value
    return found


def _accepted(origin: Any) -> Any:
    return (list, tuple) if origin is list else origin


def _container_hint(item: Any, value: Any) -> str:
    if isinstance(value, type):
        return f"that is the class, write [{value.__name__}(...)]"
    if isinstance(value, (set, frozenset)) or hasattr(value, "__next__"):
        return "write list(...) of it"
    try:
        fit(item, value)
    except Refused:
        return ""
    text = _written(value)
    return f"for one alone write [{text}]" if text else "put it into a list"


def _written(value: Any) -> str:
    """How a value is written, where that is short; empty where it is not."""
    text = "" if hasattr(value, "shape") else repr(value)
    return text if len(text) <= _SHORT and "<" not in text and "\n" not in text else ""


def _fit_tuple(kind: Any, value: Any) -> Any:
    """``tuple[X, ...]`` also from a list; ``tuple[X, Y]`` only of that length."""
    arguments = get_args(kind) or (Any, ...)
    if arguments[-1] is ...:
        return tuple(_fit_items(GenericAlias(Sequence, arguments[:1]), value))
    if not isinstance(value, (tuple, list)) or len(value) != len(arguments):
        raise _refuse(kind, value)
    pairs = zip(arguments, value, strict=True)
    return tuple(_fit_at(item, each, f"[{place}]") for place, (item, each) in enumerate(pairs))


def _fit_mapping(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _refuse(kind, value)
    key, item = get_args(kind) or (Any, Any)
    for name, each in value.items():
        _fit_at(key, name, f" with the key {shown(name)}")
        _fit_at(item, each, f"[{shown(name)}]")
    return value


def _fit_callable(kind: Any, value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        return value
    raise _refuse(kind, value)


def _fit_protocol(kind: Any, value: Any) -> Any:
    if isinstance(value, type) or any(not hasattr(value, name) for name in _members(kind)):
        raise _refuse(kind, value)
    return value


def _members(kind: Any) -> list[str]:
    own = (name for base in kind.__mro__[:-1] for name in vars(base))
    return sorted({name for name in own if not name.startswith("_")})


def _fit_at(kind: Any, value: Any, place: str) -> Any:
    try:
        return fit(kind, value)
    except Refused as refused:
        refused.place = place + refused.place
        raise


def _items_words(kind: Any) -> str:
    item = next(iter(get_args(kind)), Any)
    name = "a mapping" if get_origin(kind) is Mapping else "a list or tuple"
    return name if item is Any else f"{name}, each item {words(item)}"


def _mapping_words(kind: Any) -> str:
    pair = " to ".join(map(words, get_args(kind)))
    return f"a mapping from {pair}" if pair else "a mapping"


def _annotated_words(kind: Any) -> str:
    inner, *conditions = get_args(kind)
    return " ".join([words(inner), *(condition.words for condition in conditions)])


def _class_words(kind: Any) -> str:
    return with_article((get_origin(kind) or kind).__name__)


_ANYTHING = _Kind(lambda _, value: value, lambda _: "anything")
_CLASS = _Kind(_fit_class, _class_words)
_PROTOCOL = _Kind(
    _fit_protocol, lambda kind: f"a {kind.__name__} (an object with {', '.join(_members(kind))})"
)
_UNION = _Kind(_fit_union, lambda kind: either(map(words, get_args(kind))))
_ITEMS = _Kind(_fit_items, _items_words)
_KINDS: dict[Any, _Kind] = {
    Any: _ANYTHING,
    object: _ANYTHING,
    None: _Kind(lambda _, value: _fit_class(NoneType, value), lambda _: "None"),
    NoneType: _Kind(_fit_class, lambda _: "None"),
    bool: _Kind(_fit_bool, lambda _: "True or False"),
    int: _Kind(_fit_number, lambda _: "an int"),
    float: _Kind(_fit_number, lambda _: "a number"),
    Literal: _Kind(_fit_literal, lambda kind: either(map(repr, get_args(kind)))),
    Union: _UNION,
    UnionType: _UNION,
    Annotated: _Kind(_fit_annotated, _annotated_words),
    TypeVar: _Kind(
        lambda kind, value: fit(kind.__bound__ or Any, value),
        lambda kind: words(kind.__bound__ or Any),
    ),
    tuple: _Kind(_fit_tuple, _items_words),
    list: _ITEMS,
    Sequence: _ITEMS,
    Collection: _ITEMS,
    Iterable: _ITEMS,
    Mapping: _Kind(_fit_mapping, _mapping_words),
    dict: _Kind(_fit_mapping, _mapping_words),
    Callable: _Kind(_fit_callable, lambda _: "a function"),
}
