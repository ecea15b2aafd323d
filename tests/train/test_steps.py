"""Steps beside passes: one history, rows that say what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.passes import NMSparsity, RandomPruning
from fxcompress.program import Program
from fxcompress.train import Context, Recover, Step, evaluate
from models import normal
from stepped import PASSES, batches, compiled, fit, net

# ---- Recover


def test_statistics_are_kept_where_the_metric_rose() -> None:
    found, _, held_out = compiled(passes=PASSES[:2])
    before = compiled(passes=PASSES[:1])[0]
    task = fx.Task(held_out, metric=fit)
    rise = evaluate(before.module, task), evaluate(found.module, task)
    assert rise[0] < rise[1]
    run = found.report.passes[-1]
    assert run.repr == "Recover()"
    assert run.notes == (
        f"1 BatchNorm renewed: metric on the validation data {rise[0]:.4g} before, {rise[1]:.4g} "
        "after; kept",
    )
    assert found.history == ("MagnitudePruning(ratio=0.5, round_to=1)", "Recover()")
    old, new = before.module.state_dict(), found.module.state_dict()
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert changed == {"norm.running_mean", "norm.running_var"}


def test_statistics_are_not_kept_where_it_did_not() -> None:
    """Of the dense net they are what they were: nothing can rise."""
    found, _, _ = compiled(passes=[Recover()])
    (note,) = found.report.passes[-1].notes
    assert note.endswith("not kept, for it did not rise")
    for name, value in found.module.state_dict().items():
        assert torch.equal(value, net().state_dict()[name]), name


def test_a_step_is_never_said_to_be_verified() -> None:
    found, _, _ = compiled(passes=PASSES[:2])
    assert [check.kind for check in found.report.checks] == ["zero-masked", "not run"]
    assert "not verified after Recover(): a step may change what" in str(found.report)
    assert fx.report.Report.from_dict(found.report.to_dict()) == found.report


@pytest.mark.parametrize("missing", ["task", "metric", "validation"])
def test_what_it_needs_is_asked_for(missing: str) -> None:
    model = net()
    data = batches(model, range(1))
    options: dict[str, Any] = {"metric": fit, "validation": data}
    options.pop(missing, None)
    task = None if missing == "task" else fx.Task(data, **options)
    with pytest.raises(fx.PlanError, match=r"task=Task\(data, metric=\.\.\., validation="):
        fx.compile(model, (data[0][0],), passes=[Recover()], task=task)


def test_without_batch_norm_it_says_so() -> None:
    task = fx.Task([(normal(3, 4), normal(3, 4))], metric=fit, validation=[(normal(3, 4),) * 2])
    found = fx.compile(nn.Linear(4, 4), (normal(2, 4),), passes=[Recover()], task=task)
    assert "no BatchNorm with running statistics" in found.report.passes[-1].notes[0]


# ---- what a step may do, and what not


@dataclass(frozen=True, repr=False)
class Twice(Step):
    """Decides by itself what passes to run."""

    def run(self, program: Program, ctx: Context) -> Program:
        for ratio in (0.25, 0.5):
            program = fx.apply(program, RandomPruning(ratio=ratio, round_to=1))
        return program


def test_passes_inside_a_step_have_rows_and_the_step_is_the_history() -> None:
    found, _, _ = compiled(passes=[Twice()])
    inner = ["RandomPruning(ratio=0.25, round_to=1)", "RandomPruning(ratio=0.5, round_to=1)"]
    assert [run.repr for run in found.report.passes] == [*inner, "Twice()"]
    assert [check.where for check in found.report.checks] == [*inner, "Twice()"]
    assert [check.kind for check in found.report.checks] == ["zero-masked"] * 2 + ["not run"]
    assert found.history == ("Twice()",)
    assert found.parent == fx.compile(net(), (normal(2, 2, 6, 6).double(),)).origin
    assert all(g.units.before != g.units.after for g in found.report.groups)


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_done_once_is_read_the_next_time(folder: bool, tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Tensor]:
        made.append(1)
        return {"a": normal(3, 4).T, "b": torch.tensor(0.1, dtype=torch.float64)}

    ctx = Context(print, 0, tmp_path / "run" if folder else None)
    first, again = ctx.once("it", make), ctx.once("it", make)
    assert len(made) == (1 if folder else 2)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert ctx.read("other") is None


@dataclass(frozen=True, repr=False)
class Filling(Step):
    """Writes where the program has permanent zeros."""

    def run(self, program: Program, ctx: Context) -> Program:
        (name, zeros), *_ = program.masks.items()
        return program.with_values({name: torch.ones_like(zeros.mask, dtype=torch.float64)})


def test_a_step_may_not_fill_permanent_zeros() -> None:
    with pytest.raises(fx.VerificationError, match="that are not zero, where the program has perm"):
        compiled(passes=[NMSparsity(n=1, m=2), Filling()])


@dataclass(frozen=True, repr=False)
class Nothing(Step):
    """Gives no program."""

    def run(self, program: Program, ctx: Context) -> Program:
        return None  # type: ignore[return-value]


def test_a_step_has_to_give_a_program() -> None:
    with pytest.raises(fx.PlanError, match=r"Nothing\(\) returned NoneType; run\(\) must return"):
        compiled(passes=[Nothing()])
