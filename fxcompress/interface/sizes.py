"""Expressions over named sizes: ``batch % 8 == 0``, ``2 * length + 1``.

They stand as text in a program's interface and in its file. `term` reads the text once, with a
grammar of its own, and gives a function; nothing is handed to Python's own evaluation.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

Sizes = Mapping[str, int]
Term = Callable[[Sizes], Any]

_LONGEST = 4000
_LARGEST_POWER = 8

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.sqrt": math.sqrt,
    "math.trunc": math.trunc,
}


def term(text: str, names: Collection[str]) -> Term:
    """A function from sizes to the value of an expression.

    Args:
        text: Numbers, names, arithmetic, comparisons, ``and``, ``or``, ``not``, ``a if b else c``
            and a few functions such as ``max``.
        names: The sizes that it may speak of.

    Raises:
        ValueError: It is no such expression.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"an expression over sizes of {len(text)} characters is too long")
    try:
        return _term(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is no expression over sizes") from error


def _term(node: ast.expr, names: Collection[str]) -> Term:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return lambda sizes: value
        case ast.Name(id=name) if name in names:
            return operator.itemgetter(name)
        case ast.UnaryOp(op=kind, operand=operand):
            return (
                _applied(_UNARY[type(kind)], [_term(operand, names)])
                if (type(kind) in _UNARY)
                else _refuse(node)
            )
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _BINARY:
            _refuse_large_power(node)
            return _applied(_BINARY[type(kind)], [_term(left, names), _term(right, names)])
        case ast.Compare(left=left, ops=kinds, comparators=rest):
            return _comparison([left, *rest], kinds, names)
        case ast.BoolOp(op=kind, values=values):
            decide = all if isinstance(kind, ast.And) else any
            parts = [_term(value, names) for value in values]
            return lambda sizes: decide(part(sizes) for part in parts)
        case ast.IfExp(test=test, body=body, orelse=other):
            asked, yes, no = (_term(part, names) for part in (test, body, other))
            return lambda sizes: yes(sizes) if asked(sizes) else no(sizes)
        case ast.Call(func=function, args=args, keywords=[]) if args:
            found = _FUNCTIONS.get(ast.unparse(function))
            if found is not None:
                return _applied(found, [_term(arg, names) for arg in args])
    return _refuse(node)


def _comparison(sides: list[ast.expr], kinds: list[ast.cmpop], names: Collection[str]) -> Term:
    if any(type(kind) not in _COMPARISONS for kind in kinds):
        return _refuse(sides[0])
    terms = [_term(side, names) for side in sides]
    compare = [_COMPARISONS[type(kind)] for kind in kinds]
    if len(compare) == 1:
        return _applied(compare[0], terms)

    def chained(sizes: Sizes) -> bool:
        values = [one(sizes) for one in terms]
        return all(one(a, b) for one, a, b in zip(compare, values[:-1], values[1:], strict=True))

    return chained


def _applied(function: Callable[..., Any], parts: list[Term]) -> Term:
    if len(parts) == 2:
        first, second = parts
        return lambda sizes: function(first(sizes), second(sizes))
    return lambda sizes: function(*(part(sizes) for part in parts))


def _refuse_large_power(node: ast.BinOp) -> None:
    """A file could otherwise ask for a number that fills the memory."""
    if isinstance(node.op, ast.Pow):
        exponent = node.right
        small = isinstance(exponent, ast.Constant) and isinstance(exponent.value, int)
        if not (small and 0 <= exponent.value <= _LARGEST_POWER):  # type: ignore[attr-defined]
            _refuse(node)


def _refuse(node: ast.expr) -> Term:
    raise ValueError(f"{ast.unparse(node)[:80]!r} may not stand in an expression over sizes")
