"""How many units every group keeps.

For a budget, the families of groups are shrunk along one path to the first point that fits; what
rounding leaves over is then spent on whole steps where they fit. An exact allocation solves an
integer program instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxcompress.analysis.cost import CostModel
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget.families import (
    Family,
    Scores,
    find_families,
    kept_scores,
    ranked,
    score_path,
    uniform_path,
)
from fxcompress.budget.options import Budget, Limits
from fxcompress.budget.scope import Scope
from fxcompress.budget.search import Search, Sized, by_group, round_widths
from fxcompress.errors import BudgetError
from fxcompress.report.curves import Curves


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


def by_ratio(scope: Scope, limits: Limits, ratio: float) -> Allocation:
    """Remove the same share of units from every group.

    Raises:
        BudgetError: Nothing would be removed although `ratio` is above 0.
    """
    if ratio == 0:
        return Allocation({})
    families, notes = find_families(scope, limits)
    sized = round_widths(families, uniform_path(families)(ratio), limits)
    widths = by_group(families, sized.widths)
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
    search = Search(families, budget, cost)
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
    widths = by_group(families, sized.widths)
    return Allocation(widths, notes, None if scores is None else _curves(scores, widths))


def _curves(scores: Scores, widths: Mapping[ChannelGroup, int]) -> Curves:
    lines = {}
    for group, score in scores.items():
        kept = kept_scores(Family((group,), 1), {group: score})
        shares = tuple(width / group.units for width in range(group.units + 1))
        lines[group.name] = (shares, tuple(kept.tolist()))
    marks = {group.name: widths.get(group, group.units) / group.units for group in scores}
    return Curves("share of units kept", "score kept", lines, marks)


def _rounding_notes(families: Sequence[Family], sized: Sized, limits: Limits) -> tuple[str, ...]:
    if limits.round_to in (1, "none"):
        return ()
    count: Counter[int] = Counter()
    for family, multiple in zip(families, sized.multiples, strict=True):
        count[multiple] += len(family.groups)
    words = [
        f"multiples of {multiple} in {number} group{'s' * (number > 1)}"
        for multiple, number in sorted(count.items(), reverse=True)
        if multiple > 1
    ]
    words += [f"{count[1]} not rounded"] * (count[1] > 0)
    words += [f"{count[0]} left whole"] * (count[0] > 0)
    return (f"round_to={limits.round_to!r}: {', '.join(words)}",)
