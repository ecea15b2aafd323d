"""`Recover`: BatchNorm renewed, and kept only where the task's metric rose on held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxcompress.arguments import Count
from fxcompress.errors import PlanError
from fxcompress.program import Program
from fxcompress.task import Task
from fxcompress.train.evaluation import evaluate
from fxcompress.train.statistics import renewed
from fxcompress.train.step import Context, Step


@dataclass(frozen=True, kw_only=True, repr=False)
class Recover(Step):
    """Renew the running statistics of BatchNorm, and keep them if the task's metric rose.

    The statistics are plain means over the task's data, as `RecalibrateBatchNorm` takes them. The
    metric is measured on the task's ``validation`` data before and after; where it did not rise,
    the program is given back as it was. The report says both figures and what was decided.

    Attributes:
        batches: How many batches of the task's data; None for all.
    """

    batches: Count | None = None

    def run(self, program: Program, ctx: Context) -> Program:
        """Measure, renew, measure again.

        Raises:
            PlanError: The program has no task with a metric and validation data.
            FxCompressError: There are no batches, or the metric fails.
        """
        task, held_out = _tasks(program)
        ctx.tell("Recover: the metric before")
        before = ctx.once("before", lambda: _measured(program, held_out))
        ctx.tell("Recover: statistics of BatchNorm")
        found = ctx.once("statistics", lambda: renewed(program.module, task, self.batches))
        if not found:
            ctx.note(f"no BatchNorm with running statistics; metric {_word(before)}")
            return program
        new = program.with_values(found)
        ctx.tell("Recover: the metric after")
        after = ctx.once("after", lambda: _measured(new, held_out))
        rose = bool(after["metric"] > before["metric"])
        ctx.note(
            f"{len(found) // 2} BatchNorm renewed: metric on the validation data {_word(before)} "
            f"before, {_word(after)} after; {'kept' if rose else 'not kept, for it did not rise'}"
        )
        return new if rose else program


def _tasks(program: Program) -> tuple[Task, Task]:
    """The task, and the same on its held-out data."""
    task = program.task
    if task is None or task.metric is None or task.validation is None:
        raise PlanError(
            "Recover decides by a metric on data that nothing was fitted to; pass "
            "task=Task(data, metric=..., validation=...)"
        )
    return task, replace(task, data=task.validation)


def _measured(program: Program, held_out: Task) -> dict[str, Tensor]:
    found = evaluate(program.module, held_out)
    return {"metric": torch.tensor(found, dtype=torch.float64)}


def _word(measured: Mapping[str, Tensor]) -> str:
    return f"{float(measured['metric']):.4g}"
