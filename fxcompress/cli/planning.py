"""A dry run: the widths that passes choose, and what the result would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxcompress import train
from fxcompress.analysis.cost import Cost
from fxcompress.cli.answers import Tell
from fxcompress.cli.views import cost_table, shapes
from fxcompress.compiler import apply
from fxcompress.edit.plan import Plan
from fxcompress.errors import PlanError
from fxcompress.program import Pass, Program
from fxcompress.report.tables import table


@dataclass(frozen=True)
class Step:
    """What one pass decided.

    Attributes:
        recipe: The pass.
        widths: For each group that changes: name, kind, cells, units before and after.
        rewritten: The parameters that get other values or are read through a module.
        notes: What the pass has to say.
    """

    recipe: str
    widths: tuple[tuple[str, str, int, int, int], ...]
    rewritten: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Forecast:
    """The steps, and the costs before the first and after the last, predicted from the plans."""

    model: str
    steps: tuple[Step, ...]
    before: Cost
    after: Cost
    groups: int
    inputs: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = ("name", "kind", "cells", "before", "after")
        return {
            "passes": [
                {
                    "repr": step.recipe,
                    "groups": [dict(zip(names, row, strict=True)) for row in step.widths],
                    "rewritten": list(step.rewritten),
                    "notes": list(step.notes),
                }
                for step in self.steps
            ],
            "cost": {"before": dict(self.before.amounts), "after": dict(self.after.amounts)},
            "left": self.after.share(self.before),
        }

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        for step in self.steps:
            parts.append(Text(step.recipe))
            title = f"{len(step.widths)} of {self.groups} groups change"
            shown = table(title, "group", "kind", ">units before", ">after", ">left")
            for name, kind, cells, before, after in step.widths:
                each = f" x {cells}" if cells > 1 else ""
                shown.add_row(
                    name, kind, f"{before}{each}", f"{after}{each}", f"{after / before:.0%}"
                )
            parts.append(shown)
            if step.rewritten:
                parts.append(Text(f"{len(step.rewritten)} parameters get other values"))
            parts += [Text(f"  {note}") for note in step.notes]
        costs = cost_table(self.before, self.after, f"predicted, {self.inputs}")
        return Group(Text(f"{self.model}: a plan, nothing was written"), *parts, costs)


def planned(program: Program, passes: Sequence[Pass | train.Step], tell: Tell) -> Forecast:
    """Ask the passes in order; each sees what the one before would leave.

    Raises:
        PlanError: A pass cannot do what was asked.
    """
    before, groups = program.cost(), len(program.groups)
    model, inputs = program.report.model, shapes(program)
    steps, after = [], before
    for number, one in enumerate(passes, start=1):
        tell(f"{one}")
        if isinstance(one, train.Step):
            raise PlanError(
                f"{one!r} is a step: what it does is known when it has run; leave it out of a plan"
            )
        plan = one.plan(program)
        steps.append(_step(one, plan))
        after = program.cost.keeping(plan.stored)(plan.widths)
        if number < len(passes):
            program = apply(program, one, verify=False)
    return Forecast(model, tuple(steps), before, after, groups, inputs)


def _step(one: Pass, plan: Plan) -> Step:
    widths = tuple(
        (group.name, group.kind, group.cells, group.units, width)
        for group, width in plan.widths.items()
    )
    return Step(repr(one), widths, plan.rewritten, plan.notes)
