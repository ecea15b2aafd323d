"""What an annotation may ask beyond a type: ``Annotated[int, Interval("[1, inf)")]``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

_INTERVAL = re.compile(r"([\[(])\s*(\S+),\s*(\S+?)\s*([\])])")


@dataclass(frozen=True)
class Holds:
    """Any condition.

    Attributes:
        words: How it goes on after the name of the type: ``of two axes``.
        test: Whether a value of that type satisfies it.
    """

    words: str
    test: Callable[[Any], bool]

    def holds(self, value: Any) -> bool:
        """Whether the value satisfies the condition."""
        return self.test(value)


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends, as in mathematics: ``[0, 1)`` has 0 and has not 1."""

    text: str

    @cached_property
    def ends(self) -> tuple[bool, float, float, bool]:
        """Whether the lower end belongs to it, both ends, whether the upper one does."""
        found = _INTERVAL.fullmatch(self.text)
        assert found is not None, self.text
        left, low, high, right = found.groups()
        return left == "[", float(low), float(high), right == "]"

    @property
    def words(self) -> str:
        """How it goes on after the name of the type."""
        closed, low, high, _ = self.ends
        if high == math.inf and low != -math.inf:
            return f"{'of at least' if closed else 'above'} {low:g}"
        return f"in {self.text}"

    def holds(self, value: Any) -> bool:
        """Whether the number lies in it."""
        closed_low, low, high, closed_high = self.ends
        above = value >= low if closed_low else value > low
        return bool(above and (value <= high if closed_high else value < high))


def _is_matrix(value: Tensor) -> bool:
    return value.dim() == 2 and value.numel() > 0 and _is_finite(value)


def _is_finite(value: Tensor) -> bool:
    """Whether there are entries to look at, none of them infinite or no number at all."""
    return value.is_floating_point() and value.device.type != "meta" and _all_finite(value)


def _all_finite(value: Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.isfinite(value).all())


def _is_square(value: Tensor) -> bool:
    return _is_matrix(value) and value.shape[0] == value.shape[1]


def _is_path(value: Any) -> bool:
    text = os.fspath(value)
    return text not in ("", ".") and "\0" not in text


Share = Annotated[float, Interval("[0, 1)")]
"""A part that goes, never all."""
Positive = Annotated[float, Interval("(0, inf)")]
NotNegative = Annotated[float, Interval("[0, inf)")]
Count = Annotated[int, Interval("[1, inf)")]
Index = Annotated[int, Interval("[0, inf)")]
Seed = Annotated[int, Interval("[0, 9223372036854775808)")]
"""What generators take that add a few to it."""
FilePath = Annotated[str | Path, Holds("that names a file", _is_path)]
AnyPath = Annotated[str | os.PathLike[str], Holds("that names a file", _is_path)]
Matrix = Annotated[Tensor, Holds("of two axes, not empty, floating-point and finite", _is_matrix)]
Square = Annotated[
    Tensor, Holds("of two equal axes, not empty, floating-point and finite", _is_square)
]
Data = Annotated[Tensor, Holds("with floating-point entries, all finite", _is_finite)]
