"""The text of a rule, read: which letters stand on which axes of which operand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from torch import fx

Item = str | tuple[str, ...]
Pattern = tuple[Item, ...]
Present = list[tuple[int, fx.Node, Pattern]]
"""The operands that a call has, each with its number and its pattern."""
BROADCAST: Pattern = ("+",)


@cache
def parse(text: str) -> tuple[tuple[Pattern, ...], Pattern]:
    """(operands, output) of a rule; ValueError where it cannot be read.

    >>> parse("*b i, (g o) i -> *b o'")
    ((('*b', 'i'), (('g', 'o'), 'i')), ('*b', "o'"))
    """
    left, arrow, right = text.partition("->")
    if not arrow or not re.fullmatch(r"[\w\s*+'(),]*", left + right):
        raise ValueError(
            f"an axis rule reads 'operand, … -> output' in letters, *letters, (letters) and +, "
            f"not {text!r}"
        )
    return tuple(_pattern(part) for part in left.split(",")), _pattern(right)


def _pattern(text: str) -> Pattern:
    tokens = re.findall(r"\(([^()]*)\)|(\*?\w+'?|\+)", text)
    return tuple(tuple(group.split()) if group else letter for group, letter in tokens)


@cache
def letters(pattern: Pattern) -> frozenset[str]:
    """The letters of a pattern."""
    return frozenset(
        letter for item in pattern for letter in ((item,) if isinstance(item, str) else item)
    )


def is_star(item: Item) -> bool:
    """Whether a letter stands for any number of axes."""
    return isinstance(item, str) and item.startswith("*")


def letters_by_axis(
    pattern: Pattern, rank: int, counts: Mapping[str, int] = MappingProxyType({})
) -> tuple[tuple[str, ...], ...]:
    """The letters of every axis of a tensor with this many.

    A letter for any number of axes becomes one for each, numbered from the right as they broadcast.

    Args:
        pattern: The tensor's.
        rank: How many axes it has.
        counts: How many axes the letters stand for; needed where there are several such.

    >>> letters_by_axis(("*b", ("g", "i")), 3)
    (('*b2',), ('*b1',), ('g', 'i'))
    """
    stars = sum(map(is_star, pattern))
    found: list[tuple[str, ...]] = []
    for item in pattern:
        if isinstance(item, str) and is_star(item):
            rest = counts[item] if stars > 1 else rank - len(pattern) + 1
            found += [(f"{item}{number}",) for number in range(rest, 0, -1)]
        else:
            found.append((item,) if isinstance(item, str) else item)
    return tuple(found)
