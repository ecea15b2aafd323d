"""Kinds of single values: numbers, flags, choices, functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, get_args

from fxcompress.arguments.kinds import KINDS, Kind, refuse
from fxcompress.arguments.words import either, nearest

_WIDEST = 2**63


def _fit_number(kind: Any, value: Any) -> Any:
    """An int or a float as Python has it; an int stays one where a float may stand."""
    exact = kind is int
    if isinstance(value, bool) or not isinstance(value, Integral if exact else Real):
        raise refuse(kind, value, _number_hint(value))
    number = _plain(value)
    if not exact and not -_WIDEST < number < _WIDEST:  # what torch takes as an int
        number = number if isinstance(number, float) else _as_float(number)
        if not math.isfinite(number):
            raise refuse(kind, value)
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
    raise refuse(kind, value, "write True or False")


def _fit_literal(kind: Any, value: Any) -> Any:
    choices = get_args(kind)
    plain = _plain(value) if isinstance(value, Real) and not isinstance(value, bool) else value
    for choice in choices:
        if type(choice) is type(plain) and choice == plain:
            return choice
    raise refuse(kind, value, nearest(value, choices))


def _fit_callable(kind: Any, value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        return value
    raise refuse(kind, value)


KINDS |= {
    bool: Kind(_fit_bool, lambda _: "True or False"),
    int: Kind(_fit_number, lambda _: "an int"),
    float: Kind(_fit_number, lambda _: "a number"),
    Literal: Kind(_fit_literal, lambda kind: either(map(repr, get_args(kind)))),
    Callable: Kind(_fit_callable, lambda _: "a function"),
}
