"""The search for the widest widths within a budget.

Every widths considered are evaluated in whole numbers, so those returned fit for certain.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import floor

from torch import Tensor

from fxcompress.analysis.cost import CostModel
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.analysis.quantities import quantity
from fxcompress.budget.families import Family, Path, Scores, kept_scores
from fxcompress.budget.meter import Meter
from fxcompress.budget.minimum import unreachable
from fxcompress.budget.options import Budget, Limits
from fxcompress.budget.polynomial import Form, form_of
from fxcompress.budget.rounding import rounded, step_of
from fxcompress.budget.scope import Scope
from fxcompress.errors import BudgetError

STEPS = 30
"""Bisections of a path: enough to tell apart the widths of any family below a thousand million."""

FILL = 500
"""Steps tried when filling up."""


@dataclass(frozen=True)
class Sized:
    """For every family: the units it would keep unrounded, those it keeps, and the multiple."""

    plain: tuple[int, ...]
    widths: tuple[int, ...]
    multiples: tuple[int, ...]


@dataclass(frozen=True)
class _Bound:
    """The most that a quantity may be.

    Attributes:
        name: The quantity.
        form: Its terms in the widths of families.
        most: The largest sum of the terms.
        unit: How many of the terms' own unit make one.
        dense: The quantity of the whole model.
    """

    name: str
    form: Form
    most: int
    unit: int
    dense: int


def _bounds(families: Sequence[Family], budget: Budget, cost: CostModel) -> tuple[_Bound, ...]:
    numbers = {g.factor: n for n, family in enumerate(families) for g in family.groups}
    whole = tuple(family.units for family in families)
    bounds = []
    for name, asked in budget.asked.items():
        own = quantity(name)
        form = form_of(own, cost, numbers)
        dense = form.value(whole) // own.unit
        bounds.append(_Bound(name, form, own.most(allowed(asked, dense)), own.unit, dense))
    return tuple(bounds)


@dataclass(frozen=True)
class Search:
    """Looks for widths of `families` within `budget`, given the costs of the program."""

    families: tuple[Family, ...]
    budget: Budget
    cost: CostModel

    @cached_property
    def bounds(self) -> tuple[_Bound, ...]:
        return _bounds(self.families, self.budget, self.cost)

    def fits(self, widths: Sequence[int]) -> bool:
        """Whether the families may have these widths."""
        return all(bound.form.value(widths) <= bound.most for bound in self.bounds)

    def possible(self, path: Path, limits: Limits, scope: Scope) -> tuple[Limits, tuple[str, ...]]:
        """The limits under which the end of the path fits: rounding by ``auto`` is given up where
        only unrounded widths do.
        """
        rounded_off = round_widths(self.families, path(1), limits).widths
        if self.fits(rounded_off):
            return limits, ()
        if limits.round_to != "auto":
            raise self.unreachable(rounded_off, limits, scope)
        if not self.fits(path(1)):
            raise self.unreachable(path(1), limits, scope)
        note = "round_to='auto': not rounded, because only the narrowest widths meet this budget"
        return replace(limits, round_to=1), (note,)

    def unreachable(self, least: tuple[int, ...], limits: Limits, scope: Scope) -> BudgetError:
        widths = by_group(self.families, least)
        return unreachable(self.budget, limits, scope, self.cost, widths)

    def first_fit(self, path: Path, limits: Limits) -> Sized:
        """Bisect the path for the first point that fits; its end is known to."""
        low, high = 0.0, 1.0
        best = round_widths(self.families, path(high), limits)
        for _ in range(STEPS):
            middle = (low + high) / 2
            sized = round_widths(self.families, path(middle), limits)
            if self.fits(sized.widths):
                high, best = middle, sized
            else:
                low = middle
        return best

    def best(self, limits: Limits, scores: Scores) -> Sized:
        """The widths of largest total score that fit."""
        from fxcompress.budget.exact import Choice, most_score  # scipy.optimize: slow to import

        options = [_options(family, limits) for family in self.families]
        choices = [
            Choice(tuple(own), tuple(kept_scores(family, scores)[list(own)].tolist()))
            for family, own in zip(self.families, options, strict=True)
        ]
        most = [(bound.form, bound.most) for bound in self.bounds]
        widths = most_score(choices, most, self.fits)
        multiples = tuple(own[width] for own, width in zip(options, widths, strict=True))
        return Sized(widths, widths, multiples)

    def filled(self, sized: Sized, ranks: Sequence[Tensor] | None) -> Sized:
        """Give back single steps of rounding while they fit: to the family that has kept the least
        of its units, or with `ranks` to the one whose next unit scores most.
        """

        def step(number: int, width: int) -> tuple[float, int, int]:
            family = self.families[number]
            wider = width + step_of(max(1, sized.multiples[number]), family.span)
            gain = wider / family.units if ranks is None else -float(ranks[number][width])
            return gain, number, wider

        widths, counts = list(sized.widths), self._meters(sized.widths)
        steps = [step(n, width) for n, width in enumerate(widths) if width < self.families[n].units]
        heapq.heapify(steps)
        for _ in range(FILL):
            if not steps:
                break
            _, number, wider = heapq.heappop(steps)
            units = self.families[number].units
            if wider <= units and all(m.after(number, wider) <= most for m, most in counts):
                widths[number] = wider
                for meter, _ in counts:
                    meter.move(number, wider)
                if wider < units:
                    heapq.heappush(steps, step(number, wider))
        return replace(sized, widths=tuple(widths))

    def _meters(self, widths: Sequence[int]) -> list[tuple[Meter, int]]:
        return [(Meter(bound.form, list(widths)), bound.most) for bound in self.bounds]

    def achieved(self, sized: Sized) -> str:
        """What the plan keeps, in words."""
        words = []
        for bound in self.bounds:
            share = bound.form.value(sized.widths) // bound.unit / max(bound.dense, 1)
            words.append(f"{bound.name} {share:.4f} of the model's")
        return f"{self.budget}: the plan keeps {', '.join(words)}"


def allowed(asked: float | int, dense: int) -> int:
    """The most that a quantity may be: `asked` is a share, or above 1 the number itself."""
    return asked if isinstance(asked, int) and asked > 1 else floor(asked * dense)


def by_group(families: Sequence[Family], widths: Sequence[int]) -> dict[ChannelGroup, int]:
    """The widths of the groups that lose units."""
    return {
        group: width
        for family, width in zip(families, widths, strict=True)
        for group in family.groups
        if width < family.units
    }


def _options(family: Family, limits: Limits) -> dict[int, int]:
    """Every width that rounding leaves a family, ascending, and the multiple it comes from."""
    plain = range(family.least, family.units + 1)
    pairs = (rounded(w, family.units, family.least, family.span, limits.round_to) for w in plain)
    return dict(sorted(pairs))


def round_widths(families: Sequence[Family], plain: tuple[int, ...], limits: Limits) -> Sized:
    """Widths rounded as the limits say."""
    pairs = [
        rounded(width, family.units, family.least, family.span, limits.round_to)
        for width, family in zip(plain, families, strict=True)
    ]
    return Sized(plain, tuple(width for width, _ in pairs), tuple(m for _, m in pairs))
