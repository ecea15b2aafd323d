"""The one pass that removes units: a criterion says which, a reconstruction what becomes of the
rest, a ratio or a budget how many.

Every structured method is a criterion and a reconstruction; the named passes choose them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import (
    Allocation,
    Scope,
    Sizing,
    by_budget,
    by_ratio,
    check_globs,
    names_of,
    normalised,
    scope_of,
)
from fxcompress.budget.options import Recipe
from fxcompress.edit.plan import Edit, Plan, Project, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import find_tensor, read_tensor
from fxcompress.program import Program

Scores = dict[ChannelGroup, Tensor]


class DeclinedError(PlanError):
    """A group that a method cannot take, raised by a criterion or a reconstruction at any time.

    `StructuredPass` leaves the group whole, tells the reason in the report and plans again without
    it; a method used alone ends with this error.
    """

    def __init__(self, group: ChannelGroup, reason: str) -> None:
        super().__init__(
            f"group {group.name}: {reason}; leave it out with exclude=, or take another method"
        )
        self.group, self.reason = group, reason


def refusal(check: Callable[[], object]) -> str | None:
    """The reason of the `DeclinedError` that `check` raises, or None."""
    try:
        check()
    except DeclinedError as declined:
        return declined.reason
    return None


class Criterion(Protocol):
    """Which units of a group matter.

    It may have ``prepare(program, groups)``: called once for a plan with the groups in scope, it
    gives what scores them instead, so that one pass over data serves all groups. It may have
    ``declines(program, group)``: why it cannot score a group, or None; such a group stays whole,
    and the report tells the reason. What is found out later raises `DeclinedError`.
    """

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        """Scores of shape (cells, units); the larger, the more a unit matters.

        For a budget with global or exact allocation, the scores of all groups are compared.
        """


class Reconstruction(Protocol):
    """What becomes of a group when some of its units go.

    It may have ``prepare`` and ``declines``, as a `Criterion`; one object that is both is prepared
    once. What it has as ``notes`` after the last group goes into the report.
    """

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        """The projection onto the units `kept`, ascending indices of shape (k,) or (cells, k), and
        the values that are replaced before it.
        """


@dataclass(frozen=True, repr=False)
class Selection(Recipe):
    """The units that stay are left as they are."""

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return (Project(group, kept),)


@dataclass(frozen=True, kw_only=True, repr=False)
class StructuredPass(Sizing):
    """Remove units of every group, the least important ones first.

    Before, with ``ratio=0.5``::

        up.weight: [16, 8]   down.weight: [8, 16]      # one group of 16 units

    After::

        up.weight: [8, 8]    down.weight: [8, 8]

    Attributes:
        criterion: Scores the units.
        reconstruction: Makes up for those that go; the default changes nothing else.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    criterion: Criterion
    reconstruction: Reconstruction = Selection()

    def plan(self, program: Program) -> Plan:
        """Decide what goes.

        Raises:
            BudgetError: What was asked cannot be met, or the method can take no group in scope.
            PlanError: Scores are not finite.
        """
        limits, names = self.limits, names_of(program.module)
        check_globs((*limits.include, *limits.exclude), names)
        if self.ratio == 0:
            return Plan(())
        scope = scope_of(program.groups, names, limits)
        declined = self._declined(program, scope.groups)
        while True:
            try:
                return self._planned(program, scope.without(declined), declined)
            except DeclinedError as refused:
                if refused.group in declined:
                    raise
                declined[refused.group] = refused.reason

    def _planned(
        self, program: Program, scope: Scope, declined: Mapping[ChannelGroup, str]
    ) -> Plan:
        """The plan for the groups in scope."""
        criterion, reconstruction = self._prepared(program, scope.groups)
        allocation, scores = self._allocate(program, scope, criterion)
        edits = _Edits(program, reconstruction)
        for group, width in allocation.widths.items():
            score = scores.get(group)
            found = _score(criterion, program, group) if score is None else score
            edits.add(group, best(found, width))
        stay = (f"{group.name} stays whole: {reason}" for group, reason in declined.items())
        notes = (*allocation.notes, *stay, *getattr(reconstruction, "notes", ()))
        return Plan(edits.all, notes, allocation.curves)

    def _declined(
        self, program: Program, groups: Sequence[ChannelGroup]
    ) -> dict[ChannelGroup, str]:
        """Groups that the method cannot take, each with the reason."""
        parts = (self.criterion, self.reconstruction)
        asked = [part.declines for part in parts if hasattr(part, "declines")]
        reasons = {g: next(filter(None, (ask(program, g) for ask in asked)), None) for g in groups}
        return {group: reason for group, reason in reasons.items() if reason is not None}

    def _prepared(
        self, program: Program, groups: Sequence[ChannelGroup]
    ) -> tuple[Criterion, Reconstruction]:
        """What the two make of the program before they look at groups one by one."""
        made: dict[int, Any] = {}
        for part in (self.criterion, self.reconstruction):
            prepare = getattr(part, "prepare", None)
            if id(part) not in made:
                made[id(part)] = part if prepare is None else prepare(program, groups)
        return made[id(self.criterion)], made[id(self.reconstruction)]

    def _allocate(
        self, program: Program, scope: Scope, criterion: Criterion
    ) -> tuple[Allocation, Scores]:
        limits = self.limits
        if self.budget is None:
            assert self.ratio is not None
            return by_ratio(scope, limits, self.ratio), {}
        if self.budget.allocation == "uniform":
            return by_budget(scope, limits, self.budget, program.cost), {}
        scores = {group: _score(criterion, program, group) for group in scope.groups}
        how = self.budget.normaliser
        compared = {group: normalised(score, how) for group, score in scores.items()}
        return by_budget(scope, limits, self.budget, program.cost, compared), scores


class _Edits:
    """The edits of one group after another.

    Groups meet in a layer that one produces and the other consumes, so each sees the values that
    those before it left; a parameter is replaced once, by its last value.
    """

    def __init__(self, program: Program, reconstruction: Reconstruction) -> None:
        self.program, self.reconstruction = program, reconstruction
        self.values: dict[str, Replace] = {}
        self.projects: list[Edit] = []

    def add(self, group: ChannelGroup, kept: Tensor) -> None:
        """Reconstruct one more group."""
        edits = self.reconstruction.edits(self.program, group, kept)
        values = {edit.parameter: edit for edit in edits if isinstance(edit, Replace)}
        self.projects += [edit for edit in edits if not isinstance(edit, Replace)]
        self.values |= values
        if values:
            plain = {n: e.value.to(_dtype(self.program, n)) for n, e in values.items()}
            self.program = self.program.with_values(plain)

    @property
    def all(self) -> tuple[Edit, ...]:
        """Everything so far."""
        return (*self.values.values(), *self.projects)


def _dtype(program: Program, name: str) -> torch.dtype:
    value = find_tensor(program.module, name)
    assert value is not None
    return value.dtype


def _score(criterion: Criterion, program: Program, group: ChannelGroup) -> Tensor:
    score = criterion.score(program, group)
    if score.shape != (group.cells, group.units):
        raise PlanError(
            f"{criterion!r} scored group {group.name} with shape {tuple(score.shape)}; "
            f"it must be ({group.cells}, {group.units})"
        )
    if not bool(torch.isfinite(score).all()):
        bad = _not_finite(program, group)
        why = f"{', '.join(bad)} has entries that are not finite" if bad else "a criterion's fault"
        raise PlanError(
            f"group {group.name} has scores that are not finite ({criterion!r}): {why}; "
            "mend the checkpoint, or leave the group out with exclude="
        )
    return score


def best(score: Tensor, width: int) -> Tensor:
    """The `width` best units of each cell, ascending; of equal ones the first.

    Returns:
        Indices of shape (width,) for one cell, (cells, width) for several.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    kept = order[:, :width].sort(dim=1).values.cpu()
    return kept[0] if len(kept) == 1 else kept


def _not_finite(program: Program, group: ChannelGroup) -> Iterable[str]:
    names = dict.fromkeys(site.parameter for site in group.sites)
    return [name for name in names if not read_tensor(program.module, name).isfinite().all()]
