"""Kinds of containers: lists, tuples and mappings of values of other kinds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import GenericAlias
from typing import Any, get_args, get_origin

from fxcompress.arguments.kinds import KINDS, Kind, Refused, fit, refuse, words
from fxcompress.arguments.words import shown

_MISS = (str, bytes)
_SHORT = 60


def _fit_items(kind: Any, value: Any) -> Any:
    """A container of values of one kind; its own type stays, unless a value had to be converted."""
    origin, (item, *_) = get_origin(kind), get_args(kind) or (Any,)
    array = hasattr(value, "__array__")  # one may be gone through, but is one value
    wrong = array or isinstance(value, (*_MISS, Mapping, type))
    if wrong or not isinstance(value, _accepted(origin)):
        raise refuse(kind, value, _container_hint(item, value))
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
        raise refuse(kind, value)
    pairs = zip(arguments, value, strict=True)
    return tuple(_fit_at(item, each, f"[{place}]") for place, (item, each) in enumerate(pairs))


def _fit_mapping(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise refuse(kind, value)
    key, item = get_args(kind) or (Any, Any)
    for name, each in value.items():
        _fit_at(key, name, f" with the key {shown(name)}")
        _fit_at(item, each, f"[{shown(name)}]")
    return value


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


_ITEMS = Kind(_fit_items, _items_words)
_MAPPING = Kind(_fit_mapping, _mapping_words)
KINDS |= {
    list: _ITEMS,
    Sequence: _ITEMS,
    Collection: _ITEMS,
    Iterable: _ITEMS,
    Mapping: _MAPPING,
    dict: _MAPPING,
    tuple: Kind(_fit_tuple, _items_words),
}
