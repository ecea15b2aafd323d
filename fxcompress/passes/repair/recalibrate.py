"""Recalibrate BatchNorm: running statistics that fit the weights as they are now (REPAIR)."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.arguments import Count
from fxcompress.budget import Recipe
from fxcompress.edit.plan import Plan, Replace
from fxcompress.errors import PlanError
from fxcompress.program import Program
from fxcompress.stats import require_data
from fxcompress.stats.data import samples_of
from fxcompress.train.statistics import renewed


@dataclass(frozen=True, kw_only=True, repr=False)
class RecalibrateBatchNorm(Recipe):
    """Measure the running statistics of BatchNorm anew: plain means over the program's data.

    Before and after, the graph and all parameters are the same; only the buffers change. Merged or
    pruned units have other variances than before, and everything after them sees other inputs; this
    is what a compressed net with BatchNorm needs first.

    Attributes:
        batches: How many batches of the data; None for all. A thousand images are enough.
    """

    batches: Count | None = None

    def plan(self, program: Program) -> Plan:
        """Run the data through a copy that normalises by its batches.

        Raises:
            PlanError: The program has no data.
        """
        task = require_data(program, "RecalibrateBatchNorm")
        if next(samples_of(program, "RecalibrateBatchNorm"), None) is None:
            raise PlanError("RecalibrateBatchNorm: the task's data are empty; give some batches")
        found = renewed(program.module, task, self.batches)
        edits = [Replace(name, value) for name, value in found.items()]
        return Plan(tuple(edits), (f"{len(edits) // 2} BatchNorm recalibrated",))
