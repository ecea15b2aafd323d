"""How much a model's loss suffers when one group alone loses units."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import torch

from fxcompress.ambient import sealed
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import FilePath, Interval, checked
from fxcompress.budget import Limits, Sizing, names_of, scope_of
from fxcompress.edit.rewrite import rewrite
from fxcompress.errors import BudgetError, PlanError
from fxcompress.graph.state import evaluating, forked
from fxcompress.passes import Criterion, StructuredPass
from fxcompress.program import Pass, Program
from fxcompress.report.curves import Curves
from fxcompress.stats.data import samples_of
from fxcompress.task import Task, as_task
from fxcompress.train.batches import call
from fxcompress.train.quality import loss_of, metric_of

_WHO = "sensitivity"


@dataclass(frozen=True)
class Quality:
    """Means over the samples of the task's data; None for what the task has not."""

    loss: float | None
    metric: float | None


@dataclass(frozen=True)
class Trial:
    """One group without some of its units.

    Attributes:
        group: Its name.
        kind: What its units are.
        ratio: The share of units that was to go.
        units: Units before, in each cell.
        kept: Units after.
        loss: The loss then.
        metric: The metric then.
    """

    group: str
    kind: str
    ratio: float
    units: int
    kept: int
    loss: float | None
    metric: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The quality of a model with one group cut at a time; ``str()`` is a table.

    Attributes:
        recipe: What chose the units.
        dense: The quality of the model as it is.
        trials: Group by group, the ratios ascending.
        skipped: Groups and ratios of which no unit would have gone.
    """

    recipe: str
    dense: Quality
    trials: tuple[Trial, ...]
    skipped: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as dictionaries, lists, strings and numbers."""
        data = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in data.items()}

    def curves(self) -> Curves:
        """Loss (metric, where there is no loss) against the share of units removed."""
        what = "metric" if self.dense.loss is None else "loss"
        points: dict[str, list[tuple[float, float]]] = {}
        for trial in self.trials:
            own = points.setdefault(trial.group, [(0.0, getattr(self.dense, what))])
            own.append((1 - trial.kept / trial.units, getattr(trial, what)))
        lines = {
            name: (tuple(x for x, _ in own), tuple(y for _, y in own))
            for name, own in points.items()
        }
        return Curves("share of units removed", what, lines)

    @checked(PlanError)
    def plot(self, path: FilePath) -> Path:
        """Draw `curves` into a picture (PNG, SVG, PDF: by the suffix); give the path back."""
        return self.curves().plot(path)

    def __str__(self) -> str:
        ratios = sorted({trial.ratio for trial in self.trials})
        cells = {(t.group, t.ratio): _words(Quality(t.loss, t.metric)) for t in self.trials}
        names = dict.fromkeys((t.group, t.kind, str(t.units)) for t in self.trials)
        rows = [("group", "kind", "units", *(f"-{ratio:.0%}" for ratio in ratios))]
        rows += [(*own, *(cells.get((own[0], r), "") for r in ratios)) for own in names]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        body = (
            "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows
        )
        return "\n".join([f"dense: {_words(self.dense)}", *(line.rstrip() for line in body)])


@checked(PlanError)
@sealed
def sensitivity(
    program: Program,
    method: Sizing | Criterion,
    ratios: Sequence[Annotated[float, Interval("(0, 1)")]] = (0.25, 0.5, 0.75),
    task: Task | Iterable[Any] | None = None,
) -> Sensitivity:
    """Cut every group alone, by each of the ratios, and measure the loss and metric on data.

    A method that looks at data looks anew for every group and ratio. Nothing is rounded, and no
    limits but those on which groups may change hold.

    Args:
        program: A program; it is not changed.
        method: A pass that removes units, or a criterion alone. The pass's own ratio or budget does
            not count.
        ratios: Shares of units to remove, in (0, 1).
        task: Data with a loss or a metric; by default the program's own.

    Raises:
        PlanError: There are no data, neither loss nor metric, or the model's own loss is not
            finite.
        BudgetError: No group may lose a unit.
    """
    if task is not None:
        program = replace(program, task=as_task(task))
    pass_ = _as_pass(method)
    if not ratios:
        raise PlanError("sensitivity: ratios is empty; give shares of units to remove, in (0, 1)")
    dense = _measured(program)
    if dense.loss is not None and not isfinite(dense.loss):
        raise PlanError(f"the model's own loss on the data is {dense.loss}; mend data or model")
    trials: list[Trial] = []
    skipped: list[tuple[str, float]] = []
    for group in scope_of(program.groups, names_of(program.module), pass_.limits).groups:
        for ratio in sorted(ratios):
            trial = _trial(program, _alone(pass_, group, ratio), group, ratio)
            if trial is None:
                skipped.append((group.name, ratio))
            else:
                trials.append(trial)
    recipe = repr(method)
    return Sensitivity(recipe, dense, tuple(trials), tuple(skipped))


def _as_pass(method: Sizing | Criterion) -> Sizing:
    if isinstance(method, Sizing):
        return method
    return StructuredPass(criterion=method, ratio=0.5)


def _alone(pass_: Sizing, group: ChannelGroup, ratio: float) -> Pass:
    """The pass on one group only."""
    limits, free = pass_.limits, Limits()
    changes: dict[str, Any] = {
        **{name: getattr(limits, name) for name in ("include", "exclude", "dims", "exact_only")},
        **{name: getattr(free, name) for name in ("max_ratio", "min_units")},
        "groups": glob.escape(group.name),
        "uniform_across_layers": False,
        "round_to": 1,
        "ratio": ratio,
        "budget": None,
    }
    one: Any = replace(pass_, **changes)
    return one  # type: ignore[no-any-return]


def _trial(program: Program, one: Pass, group: ChannelGroup, ratio: float) -> Trial | None:
    """The quality after a pass, None where it removes nothing."""
    try:
        plan = one.plan(program)
    except BudgetError:
        return None
    module = rewrite(program.module, program.analysis.coupling, plan).module
    quality = _measured(replace(program, module=module))
    kept = plan.widths.get(group, group.units)
    return Trial(group.name, group.kind, ratio, group.units, kept, quality.loss, quality.metric)


def _measured(program: Program) -> Quality:
    task = program.task
    if task is not None and task.loss is None and task.metric is None:
        raise PlanError(f"{_WHO} measures a loss or a metric; give task=Task(data, loss=...)")
    with evaluating(program.module) as module, forked(module), torch.no_grad():
        found = list(_each(replace(program, module=module)))
    total = sum(size for _, _, size in found)
    losses = [loss * size for loss, _, size in found if loss is not None]
    metrics = [metric * size for _, metric, size in found if metric is not None]
    return Quality(
        sum(losses) / total if losses else None, sum(metrics) / total if metrics else None
    )


def _each(program: Program) -> Iterator[tuple[float | None, float | None, int]]:
    """Loss, metric and size of every batch."""
    for inputs, labels, size in samples_of(program, _WHO, labels=_has_loss(program.task)):
        assert program.task is not None
        task = program.task
        out = call(program.module, task, inputs)
        loss = None if task.loss is None else float(loss_of(task, out, labels, _WHO))
        metric = None if task.metric is None else metric_of(task, out, labels, _WHO)
        yield loss, metric, size


def _has_loss(task: Task | None) -> bool:
    return task is None or task.loss is not None


def _words(quality: Quality) -> str:
    given = (value for value in (quality.loss, quality.metric) if value is not None)
    return " / ".join(f"{value:.4g}" for value in given)
