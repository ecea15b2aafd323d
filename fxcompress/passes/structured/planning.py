"""A plan from a criterion, a reconstruction and a size: scores, widths, then one group's edits
after another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from fxcompress.edit.plan import Edit, Plan
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import read_tensor, tensor_called
from fxcompress.passes.structured.parts import Criterion, DeclinedError, Part, Reconstruction
from fxcompress.program import Program

Scores = dict[ChannelGroup, Tensor]


@dataclass(frozen=True)
class Planner:
    """How much goes, which units, and what becomes of the rest.

    Attributes:
        sizing: A ratio or a budget, and limits.
        criterion: Which units matter.
        reconstruction: What becomes of a group without the others.
    """

    sizing: Sizing
    criterion: Criterion
    reconstruction: Reconstruction

    def plan(self, program: Program) -> Plan:
        """Decide what goes.

        Raises:
            BudgetError: What was asked cannot be met, or the method can take no group in scope.
            PlanError: Scores are not finite.
        """
        self.sizing.check()
        limits, names = self.sizing.limits, names_of(program.module)
        check_globs((*limits.include, *limits.exclude), names)
        if self.sizing.ratio == 0:
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
        ready = self._prepared(program, scope.groups)
        allocation, scores = self._allocate(program, scope, ready)
        edits = _Edits(program, ready.reconstruction)
        for group, width in allocation.widths.items():
            score = scores.get(group)
            found = self._score(ready.criterion, program, group) if score is None else score
            edits.add(group, best(found, width))
        stay = (f"{group.name} stays whole: {reason}" for group, reason in declined.items())
        notes = (*allocation.notes, *stay, *_notes((ready.criterion, ready.reconstruction)))
        return Plan(edits.all, notes, allocation.curves)

    def _declined(
        self, program: Program, groups: Sequence[ChannelGroup]
    ) -> dict[ChannelGroup, str]:
        """Groups that the method cannot take, each with the reason."""
        parts = (self.criterion, self.reconstruction)
        reasons = {
            group: next(filter(None, (part.declines(program, group) for part in parts)), None)
            for group in groups
        }
        return {group: reason for group, reason in reasons.items() if reason is not None}

    def _prepared(self, program: Program, groups: Sequence[ChannelGroup]) -> Planner:
        """With what the two make of the program before they look at groups one by one."""
        made: dict[int, Any] = {}
        for part in (self.criterion, self.reconstruction):
            if id(part) not in made:
                made[id(part)] = part.prepare(program, groups)
        return Planner(self.sizing, made[id(self.criterion)], made[id(self.reconstruction)])

    def _allocate(
        self, program: Program, scope: Scope, ready: Planner
    ) -> tuple[Allocation, Scores]:
        limits, budget = self.sizing.limits, self.sizing.budget
        if budget is None:
            assert self.sizing.ratio is not None
            return by_ratio(scope, limits, self.sizing.ratio), {}
        if budget.allocation == "uniform":
            return by_budget(scope, limits, budget, program.cost), {}
        scores = {group: self._score(ready.criterion, program, group) for group in scope.groups}
        compared = {group: normalised(score, budget.normaliser) for group, score in scores.items()}
        return by_budget(scope, limits, budget, program.cost, compared), scores

    def _score(self, ready: Criterion, program: Program, group: ChannelGroup) -> Tensor:
        """What the prepared criterion gives, if it is as it must be."""
        score = ready.score(program, group)
        if score.shape != (group.cells, group.units):
            raise PlanError(
                f"{self.criterion!r} scored group {group.name} with shape {tuple(score.shape)}; "
                f"it must be ({group.cells}, {group.units})"
            )
        if not bool(torch.isfinite(score).all()):
            bad = ", ".join(_not_finite(program, group))
            why = f"{bad} has entries that are not finite" if bad else "a criterion's fault"
            raise PlanError(
                f"group {group.name} has scores that are not finite ({self.criterion!r}): {why}; "
                "mend the checkpoint, or leave the group out with exclude="
            )
        return score


@dataclass(eq=False)
class _Edits:
    """The edits of one group after another.

    Groups meet in a layer that one produces and the other consumes, so each sees the values that
    those before it left; a parameter is replaced once, by its last value.
    """

    program: Program
    reconstruction: Reconstruction
    values: dict[str, Edit] = field(default_factory=dict)
    projects: list[Edit] = field(default_factory=list)

    def add(self, group: ChannelGroup, kept: Tensor) -> None:
        """Reconstruct one more group."""
        edits = self.reconstruction.edits(self.program, group, kept)
        values = {name: value for edit in edits for name, value in edit.values.items()}
        self.values |= {name: edit for edit in edits for name in edit.values}
        self.projects += [edit for edit in edits if not edit.values]
        if values:
            plain = {n: value.to(_dtype(self.program, n)) for n, value in values.items()}
            self.program = self.program.with_values(plain)

    @property
    def all(self) -> tuple[Edit, ...]:
        """Everything so far."""
        return (*self.values.values(), *self.projects)


def best(score: Tensor, width: int) -> Tensor:
    """The `width` best units of each cell, ascending; of equal ones the first.

    Returns:
        Indices of shape (width,) for one cell, (cells, width) for several.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    kept = order[:, :width].sort(dim=1).values.cpu()
    return kept[0] if len(kept) == 1 else kept


def _notes(parts: Iterable[Part]) -> list[str]:
    """What the parts tell, each once."""
    return [note for part in {id(part): part for part in parts}.values() for note in part.notes]


def _dtype(program: Program, name: str) -> torch.dtype:
    value = tensor_called(program.module, name)
    return value.dtype


def _not_finite(program: Program, group: ChannelGroup) -> Iterable[str]:
    names = dict.fromkeys(site.parameter for site in group.sites)
    return [name for name in names if not read_tensor(program.module, name).isfinite().all()]
