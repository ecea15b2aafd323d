"""Widths that hardware likes: which multiples, and how to reach them.

Runtimes pad channels to blocks; a width that is no multiple of 4 leaves the fast layout of
onnxruntime altogether, so that 61 channels cost more than 64.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from math import gcd

from fxcompress.errors import BudgetError

TARGETS: Mapping[str, int] = {
    "none": 1,
    "ort-cpu": 16,
    "ort-cpu-avx2": 8,
    "ort-cpu-neon": 8,
    "openvino": 16,
    "tensorrt-fp16": 8,
    "tensorrt-int8": 32,
}
"""Block sizes of runtimes: of which number a width should be a multiple."""

AUTO = (16, 8, 4)
"""What ``round_to="auto"`` tries, in this order."""


def multiple_of(round_to: int | str) -> int | None:
    """The multiple that `round_to` asks for; None for ``"auto"``, where each group finds its own.

    Raises:
        BudgetError: `round_to` is neither a positive number, nor ``"auto"``, nor a known target.
    """
    if round_to == "auto":
        return None
    if isinstance(round_to, str) and round_to in TARGETS:
        return TARGETS[round_to]
    if isinstance(round_to, int) and not isinstance(round_to, bool) and round_to >= 1:
        return round_to
    near = difflib.get_close_matches(str(round_to), TARGETS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise BudgetError(
        f"round_to={round_to!r}{hint}: give 'auto', a number of at least 1, or one of "
        f"{', '.join(TARGETS)}"
    )


def step_of(multiple: int, span: int) -> int:
    """How many units make the width a multiple, where one unit takes `span` places."""
    return multiple // gcd(multiple, span)


def rounded(plain: int, units: int, least: int, span: int, round_to: int | str) -> tuple[int, int]:
    """How many of `units` a group keeps that would keep `plain`, and the multiple this comes from.

    A group that loses nothing is left as it is, with multiple 0. So is one without room for any
    multiple.

    Args:
        plain: Units it would keep unrounded.
        units: Units it has.
        least: Fewest units it may keep.
        span: Places that one unit takes on its axis.
        round_to: As in `Limits`.
    """
    if plain >= units:
        return units, 0
    multiple = multiple_of(round_to)
    if multiple is not None:
        width = nearest(plain, units, least, step_of(multiple, span))
        return (units, 0) if width is None else (width, multiple)
    for multiple in AUTO:
        width = nearest(plain, units, least, step_of(multiple, span))
        if width is not None and 8 * abs(width - plain) <= plain:
            return width, multiple
    return plain, 1


def nearest(plain: int, units: int, least: int, step: int) -> int | None:
    """The multiple of `step` in least…units nearest to `plain`, the wider of two, or None."""
    low, high = -(-least // step), units // step
    if low > high:
        return None
    return step * min(max((2 * plain + step) // (2 * step), low), high)
