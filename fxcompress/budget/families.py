"""Families of groups, and the paths along which they shrink from whole to least.

A *family* is what gets one width: a single group, or with ``uniform_across_layers`` all groups that
must look the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget.options import Limits
from fxcompress.budget.scope import Scope
from fxcompress.errors import BudgetError

Scores = Mapping[ChannelGroup, Tensor]
Path = Callable[[float], tuple[int, ...]]
"""From a number in 0…1 to the units that every family keeps: all at 0, the fewest at 1."""

_TINY = 1e-9  # shares are decimal fractions: 0.29 * 100 must count as 29, not as 28


@dataclass(frozen=True, eq=False)
class Family:
    """Groups of equal size that keep the same width.

    Attributes:
        groups: At least one.
        least: The fewest units they may keep.
    """

    groups: tuple[ChannelGroup, ...]
    least: int

    @property
    def units(self) -> int:
        """Units of each of the groups."""
        return self.groups[0].units

    @property
    def span(self) -> int:
        """Places that one unit takes."""
        return self.groups[0].span


def find_families(scope: Scope, limits: Limits) -> tuple[tuple[Family, ...], tuple[str, ...]]:
    """The families that may shrink, and notes on those that may not.

    Raises:
        BudgetError: None may.
    """
    if not limits.uniform_across_layers:
        return tuple(Family((group,), _least(group, limits)) for group in scope.groups), ()
    members: dict[object, list[ChannelGroup]] = {}
    for group in scope.groups:
        members.setdefault(_looks(group), []).append(group)
    stuck = {_looks(group): f"{group.name} ({reason})" for group, reason in scope.left.items()}
    notes = tuple(
        f"{', '.join(map(str, groups))}: left whole, to look like {stuck[looks]}"
        for looks, groups in members.items()
        if looks in stuck
    )
    families = tuple(
        Family(tuple(groups), _least(groups[0], limits))
        for looks, groups in members.items()
        if looks not in stuck
    )
    if not families:
        raise BudgetError(
            f"uniform_across_layers leaves no group that may lose a unit: {'; '.join(notes)}"
        )
    return families, notes


def _looks(group: ChannelGroup) -> object:
    """Equal for groups that differ only in the numbers of their blocks."""
    layer, colon, rest = group.name.partition(":")
    *blocks, last = layer.split(".")
    blocks = [re.sub(r"\d+$", "#", block) for block in blocks]
    # The number in "conv1" tells layers of a block apart; that in "layers.1" tells the block.
    path = ".".join([*blocks, "#" if last.isdigit() else last])
    return path + colon + rest, group.kind, group.units, group.cells, group.span


def _least(group: ChannelGroup, limits: Limits) -> int:
    share = ceil(group.units * (1 - limits.max_ratio) - _TINY)
    return min(group.units, max(1, limits.min_units, share))


def uniform_path(families: Sequence[Family]) -> Path:
    """The same share of units leaves every family: ⌊share · n⌋ of n, never more than asked for.

    Tools that keep ⌊(1 - share) · n⌋, as torch-pruning does, remove one unit more where share · n
    is no whole number.
    """

    def path(share: float) -> tuple[int, ...]:
        return tuple(max(f.least, f.units - floor(share * f.units + _TINY)) for f in families)

    return path


def score_path(families: Sequence[Family], scores: Scores) -> Path:
    """Units leave in the order of their scores, wherever they are."""
    removable = [ranked(f, scores).flip(0)[: f.units - f.least] for f in families]
    owners = torch.cat([torch.full((len(own),), n) for n, own in enumerate(removable)])
    order = owners[torch.argsort(torch.cat(removable), stable=True)]

    def path(share: float) -> tuple[int, ...]:
        gone = torch.bincount(order[: round(share * len(order))], minlength=len(families))
        return tuple(f.units - count for f, count in zip(families, gone.tolist(), strict=True))

    return path


def ranked(family: Family, scores: Scores) -> Tensor:
    """Scores of a family from the largest, shape (units,).

    Cells and groups of a family lose equally many units but pick their own, so what leaves together
    is the unit of the same rank in each: its score is their mean.
    """
    own = torch.cat([scores[group].reshape(-1, family.units) for group in family.groups])
    return own.double().cpu().sort(dim=1, descending=True).values.mean(0)


def kept_scores(family: Family, scores: Scores) -> Tensor:
    """The total score that a family keeps with 0, 1 … all units, shape (units + 1,)."""
    cells = sum(scores[group].numel() // family.units for group in family.groups)
    ranks = ranked(family, scores) * cells
    return torch.cat([ranks.new_zeros(1), ranks.cumsum(0)])
