"""How many units every group keeps.

For a budget, the families of groups are shrunk along one path to the first point that fits; what
rounding leaves over is then spent on whole steps where they fit. An exact allocation solves an
integer program instead. The cost of every plan considered is evaluated, so the one returned fits
for certain.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

from torch import Tensor

from fxcompress.analysis.cost import Cost, CostModel
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget.families import (
    Family,
    Path,
    Scores,
    find_families,
    kept_scores,
    ranked,
    score_path,
    uniform_path,
)
from fxcompress.budget.minimum import unreachable
from fxcompress.budget.options import Budget, Limits
from fxcompress.budget.polynomial import cost_polynomials
from fxcompress.budget.rounding import rounded, step_of
from fxcompress.budget.scope import Scope
from fxcompress.errors import BudgetError
from fxcompress.report.curves import Curves

STEPS = 30
"""Bisections of a path: enough to tell apart the widths of any family below a thousand million."""

FILL = 500
"""Steps tried when filling up: about a second's worth of costs on a large model."""


@dataclass(frozen=True)
class Allocation:
    """How many units each group keeps (in each cell), and what to tell about it.

    Attributes:
        widths: For the groups that lose units.
        notes: Sentences for the report.
        curves: The score that each group would keep at each width, where scores were compared; the
            widths chosen are marked.
    """

    widths: Mapping[ChannelGroup, int]
    notes: tuple[str, ...] = ()
    curves: Curves | None = None


@dataclass(frozen=True)
class Sized:
    """For every family: the units it would keep unrounded, those it keeps, and the multiple."""

    plain: tuple[int, ...]
    widths: tuple[int, ...]
    multiples: tuple[int, ...]


def by_ratio(scope: Scope, limits: Limits, ratio: float) -> Allocation:
    """Remove the same share of units from every group.

    Raises:
        BudgetError: Nothing would be removed although `ratio` is above 0.
    """
    if ratio == 0:
        return Allocation({})
    families, notes = find_families(scope, limits)
    sized = _round(families, uniform_path(families)(ratio), limits)
    widths = _by_group(families, sized.widths)
    if not widths:
        raise BudgetError(
            f"ratio={ratio} with round_to={limits.round_to!r} removes no unit of any group, the "
            f"largest has {max(family.units for family in families)}; ask for a larger ratio, or "
            "turn rounding off with round_to=1"
        )
    return Allocation(widths, (*notes, *_rounding_notes(families, sized, limits)))


def by_budget(
    scope: Scope, limits: Limits, budget: Budget, cost: CostModel, scores: Scores | None = None
) -> Allocation:
    """Remove as little as the budget allows.

    Args:
        scope: The groups that may change.
        limits: The limits that hold.
        budget: What may remain at most.
        cost: Costs of the program.
        scores: Normalised scores of shape (cells, units), for a global or exact allocation; None
            for a uniform one.

    Raises:
        BudgetError: So little cannot be reached; the message says what can, and what is in the way.
    """
    families, notes = find_families(scope, limits)
    search = _Search(families, budget, cost)
    if search.fits(tuple(family.units for family in families)):
        return Allocation({}, ("the model is within the budget as it is",))
    path = uniform_path(families) if scores is None else score_path(families, scores)
    limits, words = search.possible(path, limits, scope)
    if budget.allocation == "exact" and scores is not None:
        sized = search.best(limits, scores)
    else:
        sized = search.first_fit(path, limits)
        ranks = None if scores is None else [ranked(family, scores) for family in families]
        sized = search.filled(sized, ranks)
    notes = (*notes, *words, *_rounding_notes(families, sized, limits), search.achieved(sized))
    widths = _by_group(families, sized.widths)
    return Allocation(widths, notes, None if scores is None else _curves(scores, widths))


@dataclass(frozen=True)
class _Search:
    families: tuple[Family, ...]
    budget: Budget
    cost: CostModel
    known: dict[tuple[int, ...], Cost] = field(default_factory=dict)

    def cost_of(self, widths: tuple[int, ...]) -> Cost:
        if widths not in self.known:
            self.known[widths] = self.cost(_by_group(self.families, widths))
        return self.known[widths]

    def fits(self, widths: tuple[int, ...]) -> bool:
        cost, dense = self.cost_of(widths), self.dense
        return all(
            getattr(cost, name) <= allowed(asked, getattr(dense, name))
            for name, asked in self.budget.asked.items()
        )

    @property
    def dense(self) -> Cost:
        return self.cost_of(tuple(family.units for family in self.families))

    def possible(self, path: Path, limits: Limits, scope: Scope) -> tuple[Limits, tuple[str, ...]]:
        """The limits under which the end of the path fits: rounding by ``auto`` is given up where
        only unrounded widths do.
        """
        rounded_off = _round(self.families, path(1), limits).widths
        if self.fits(rounded_off):
            return limits, ()
        if limits.round_to != "auto":
            raise self.unreachable(rounded_off, limits, scope)
        if not self.fits(path(1)):
            raise self.unreachable(path(1), limits, scope)
        note = "round_to='auto': not rounded, because only the narrowest widths meet this budget"
        return replace(limits, round_to=1), (note,)

    def unreachable(self, least: tuple[int, ...], limits: Limits, scope: Scope) -> BudgetError:
        widths = _by_group(self.families, least)
        return unreachable(self.budget, limits, scope, self.cost, widths)

    def first_fit(self, path: Path, limits: Limits) -> Sized:
        """Bisect the path for the first point that fits; its end is known to."""
        low, high = 0.0, 1.0
        best = _round(self.families, path(high), limits)
        for _ in range(STEPS):
            middle = (low + high) / 2
            sized = _round(self.families, path(middle), limits)
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
        numbers = {g.factor: n for n, family in enumerate(self.families) for g in family.groups}
        polynomials = cost_polynomials(self.cost, numbers)
        most = []
        for name, asked in self.budget.asked.items():
            limit = allowed(asked, getattr(self.dense, name))
            pair = ("flops", 2 * limit + 1) if name == "macs" else (name, limit)
            most.append((polynomials[pair[0]], pair[1]))
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

        widths = sized.widths
        steps = [step(n, width) for n, width in enumerate(widths) if width < self.families[n].units]
        heapq.heapify(steps)
        for _ in range(FILL):
            if not steps:
                break
            _, number, wider = heapq.heappop(steps)
            trial = (*widths[:number], wider, *widths[number + 1 :])
            if wider <= self.families[number].units and self.fits(trial):
                widths = trial
                if wider < self.families[number].units:
                    heapq.heappush(steps, step(number, wider))
        return replace(sized, widths=widths)

    def achieved(self, sized: Sized) -> str:
        share = self.cost_of(sized.widths).share(self.dense)
        words = [f"{name} {share[name]:.4f} of the model's" for name in self.budget.asked]
        return f"{self.budget}: the plan keeps {', '.join(words)}"


def allowed(asked: float | int, dense: int) -> int:
    """The most that a quantity may be: `asked` is a share, or above 1 the number itself."""
    return asked if isinstance(asked, int) and asked > 1 else floor(asked * dense)


def _by_group(families: Sequence[Family], widths: Sequence[int]) -> dict[ChannelGroup, int]:
    return {
        group: width
        for family, width in zip(families, widths, strict=True)
        for group in family.groups
        if width < family.units
    }


def _options(family: Family, limits: Limits) -> dict[int, int]:
    """Every width that rounding leaves a family, ascending, and the multiple it comes from."""
    plain = range(family.floor, family.units + 1)
    pairs = (rounded(w, family.units, family.floor, family.span, limits.round_to) for w in plain)
    return dict(sorted(pairs))


def _curves(scores: Scores, widths: Mapping[ChannelGroup, int]) -> Curves:
    lines = {}
    for group, score in scores.items():
        kept = kept_scores(Family((group,), 1), {group: score})
        shares = tuple(width / group.units for width in range(group.units + 1))
        lines[group.name] = (shares, tuple(kept.tolist()))
    marks = {group.name: widths.get(group, group.units) / group.units for group in scores}
    return Curves("share of units kept", "score kept", lines, marks)


def _round(families: Sequence[Family], plain: tuple[int, ...], limits: Limits) -> Sized:
    pairs = [
        rounded(width, family.units, family.floor, family.span, limits.round_to)
        for width, family in zip(plain, families, strict=True)
    ]
    return Sized(plain, tuple(width for width, _ in pairs), tuple(m for _, m in pairs))


def _rounding_notes(families: Sequence[Family], sized: Sized, limits: Limits) -> tuple[str, ...]:
    if limits.round_to in (1, "none"):
        return ()
    count: Counter[int] = Counter()
    for family, multiple in zip(families, sized.multiples, strict=True):
        count[multiple] += len(family.groups)
    words = [f"multiples of {m} in {count[m]} groups" for m in sorted(count, reverse=True) if m > 1]
    words += [f"{count[1]} not rounded"] * (count[1] > 0)
    words += [f"{count[0]} left whole"] * (count[0] > 0)
    return (f"round_to={limits.round_to!r}: {', '.join(words)}",)
