"""Summaries of repeated timings: quantiles, and the interval of a paired ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Where the timings of one entry lie, in milliseconds."""

    min: float
    p50: float
    p90: float
    iqr: float


@dataclass(frozen=True)
class Ratio:
    """A median of paired ratios with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves no doubt that the two differ."""
        return not self.low <= 1.0 <= self.high


def spread(milliseconds: Sequence[float]) -> Spread:
    """Quantiles of timings.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(min=1.0, p50=3.0, p90=4.6, iqr=2.0)
    """
    low, middle, high, slow = np.percentile(milliseconds, [25, 50, 75, 90])
    return Spread(min(milliseconds), float(middle), float(slow), float(high - low))


def paired_ratio(base: Sequence[float], other: Sequence[float], seed: int) -> Ratio:
    """How many times shorter ``other`` is, round by round: a slow moment slows both of a pair.

    The interval is the percentile bootstrap's: the median has no smooth influence function, on
    which the accelerated one relies.
    """
    from scipy.stats import bootstrap  # slow to import, and needed here only

    ratios = np.asarray(base) / np.asarray(other)
    if np.ptp(ratios) == 0.0:
        return Ratio(float(ratios[0]), float(ratios[0]), float(ratios[0]))
    interval = bootstrap(
        (ratios,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Ratio(float(np.median(ratios)), float(interval.low), float(interval.high))
