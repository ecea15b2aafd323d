"""Why a budget cannot be met: the least there is, and what holds it."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from fxcompress.analysis.cost import CostModel
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget.options import Budget, Limits
from fxcompress.budget.scope import Scope
from fxcompress.errors import BudgetError


def unreachable(
    budget: Budget,
    limits: Limits,
    scope: Scope,
    cost: CostModel,
    least: Mapping[ChannelGroup, int],
) -> BudgetError:
    """The error for a budget below the cost of `least`, the narrowest widths that are allowed."""
    dense, minimum = cost(), cost(least)
    words = []
    for name, asked in budget.asked.items():
        share = minimum.share(dense)[name]
        limit = asked if isinstance(asked, int) and asked > 1 else asked * dense[name]
        if minimum[name] > limit:
            words.append(
                f"{budget.spelled(name, asked)} is below the minimum of {share:.4f} "
                f"({minimum[name]:,} of {dense[name]:,}); ask for "
                f"{budget.spelled(name, ceil(share * 1e4) / 1e4)} or more. "
                f"It is held by {_holders(name, scope, cost, least)}"
            )
    return BudgetError("; ".join(words) + _tight(limits))


def _holders(
    name: str, scope: Scope, cost: CostModel, least: Mapping[ChannelGroup, int], most: int = 5
) -> str:
    """The groups left out of the plan, by how much the minimum would sink if they went too."""
    held, dense, minimum = [], cost()[name], cost(least)[name]
    for group, reason in scope.left.items():
        gain = (minimum - cost({**least, group: 1})[name]) / max(1, dense)
        held.append((gain, group, reason))
    held.sort(key=lambda each: -each[0])
    words = [
        f"{group.name} {gain:.1%} ({reason})" for gain, group, reason in held[:most] if gain > 0
    ]
    rest = sum(gain > 0 for gain, *_ in held) - len(words)
    words += [f"and {rest} more groups"] * (rest > 0)
    return ", ".join(words) or "one unit of every group"


def _tight(limits: Limits) -> str:
    """The limits that keep units from leaving, if any were set."""
    words = []
    if limits.max_ratio < 1:
        words.append(f"max_ratio={limits.max_ratio}")
    if limits.min_units > 1:
        words.append(f"min_units={limits.min_units}")
    if limits.round_to not in (1, "none", "auto"):
        words.append(f"round_to={limits.round_to!r}")
    return f", and by {', '.join(words)}" if words else ""
