"""Steps beside passes: one history, rows that say what was measured, and runs that go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.passes import MagnitudePruning, NMSparsity, RandomPruning
from fxcompress.program import Program
from fxcompress.train import Context, Recover, Step, evaluate, recalibrate
from models import normal, randomize

KILL = "FXCOMPRESS_TEST_KILL"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def fit(output: Tensor, labels: Tensor) -> float:
    """The larger, the nearer the outputs are to those of the dense net."""
    return -float((output - labels).square().mean())


def net() -> nn.Module:
    """With statistics of the data, as after training."""
    model = randomize(Net()).double().eval()
    recalibrate(model, fx.Task(batches(model, range(4))))
    return model


def batches(model: nn.Module, seeds: range) -> list[tuple[Tensor, Tensor]]:
    images = [normal(6, 2, 6, 6, seed=seed).double() for seed in seeds]
    with torch.no_grad():
        return [(each, model.eval()(each)) for each in images]


def interrupt() -> None:
    """What stops a run: a key pressed, or the system's kill."""
    if KILL in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyboardInterrupt


class Counted:
    """Batches that count how often they are read, and stop the run at one of them."""

    def __init__(self, data: list[Any], stop: int = -1) -> None:
        self.data, self.stop, self.read = data, stop, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            if self.read == self.stop:
                interrupt()
            self.read += 1
            yield batch


PASSES = (MagnitudePruning(ratio=0.5, round_to=1), Recover(), RandomPruning(ratio=0.25, round_to=1))


def compiled(
    stop: int = -1, held_out_stop: int = -1, **options: Any
) -> tuple[Program, Counted, Counted]:
    model = net()
    data = Counted(batches(model, range(4)), stop)
    held_out = Counted(batches(model, range(10, 12)), held_out_stop)
    task = fx.Task(data, metric=fit, validation=held_out)
    options = {"passes": PASSES, **options}
    found = fx.compile(model, (normal(2, 2, 6, 6).double(),), task=task, **options)
    return found, data, held_out


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


# ---- runs that are killed


def assert_same(found: Program, expected: Program) -> None:
    """To the last bit, and the report too but for the seconds."""
    for name, value in expected.module.state_dict().items():
        assert torch.equal(value, found.module.state_dict()[name]), name
    assert found.history == expected.history
    assert found.parent == expected.parent
    assert [run.notes for run in found.report.passes] == [r.notes for r in expected.report.passes]
    assert found.report.checks == expected.report.checks
    assert found.report.groups == expected.report.groups
    assert found.report.sizes == expected.report.sizes
    assert found.kept.keys() == expected.kept.keys()


@pytest.mark.parametrize(
    ("stop", "held_out_stop", "again", "held_out_again"),
    [
        (-1, 0, 4, 4),  # while the metric before is measured
        (-1, 1, 4, 4),
        (0, -1, 4, 2),  # while the statistics are taken: the metric before is known
        (3, -1, 4, 2),
        (-1, 3, 0, 2),  # while the metric after is measured: the statistics are known
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(
    stop: int, held_out_stop: int, again: int, held_out_again: int, tmp_path: Path
) -> None:
    whole, data, held_out = compiled()
    assert (data.read, held_out.read) == (4, 4)
    with pytest.raises(KeyboardInterrupt):
        compiled(stop, held_out_stop, checkpoint=tmp_path)
    told: list[str] = []
    found, data, held_out = compiled(checkpoint=tmp_path, on_progress=told.append)
    assert_same(found, whole)
    assert (data.read, held_out.read) == (again, held_out_again)
    assert any(line.startswith("go on after MagnitudePruning(ratio=0.5") for line in told)
    last, data, held_out = compiled(checkpoint=tmp_path)
    assert_same(last, whole)
    assert (data.read, held_out.read) == (0, 0)
    assert len(list(tmp_path.iterdir())) == 3, "a program after each, and nothing else"


def test_a_run_that_the_system_kills_goes_on_too(tmp_path: Path) -> None:
    code = f"import test_steps; test_steps.compiled(2, checkpoint={str(tmp_path)!r})"
    places = os.pathsep.join([*map(str, (Path(__file__).parent, *Path(__file__).parents[1:3]))])
    environment = {**os.environ, KILL: "1", "PYTHONPATH": places}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found, data, held_out = compiled(checkpoint=tmp_path)
    assert_same(found, compiled()[0])
    assert (data.read, held_out.read) == (4, 2)


def test_another_run_takes_nothing_of_this_one(tmp_path: Path) -> None:
    compiled(checkpoint=tmp_path)
    for options in ({"seed": 1}, {"verify": False}, {"passes": PASSES[1:]}):
        _, data, _ = compiled(checkpoint=tmp_path, **options)
        assert data.read == 4, options
    found, data, _ = compiled(checkpoint=tmp_path, passes=(*PASSES[:2], NMSparsity(n=1, m=2)))
    assert data.read == 0, "what is the same is not done again"
    assert found.history[-1] == "NMSparsity(n=1, m=2)"


def test_a_model_of_other_code_with_the_same_weights_is_another_run(tmp_path: Path) -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    one, other = Net().eval(), Twice().eval()
    other.load_state_dict(one.state_dict())
    x = normal(2, 2, 6, 6)
    half = [MagnitudePruning(ratio=0.5)]
    small = fx.compile(one, (x,), passes=half, checkpoint=tmp_path)
    twice = fx.compile(other, (x,), passes=half, checkpoint=tmp_path)
    torch.testing.assert_close(twice(x), 2 * small(x), rtol=1e-6, atol=0)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compiled(0, checkpoint=tmp_path)
    (kept,) = tmp_path.glob("*/before.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(fx.LoadError, match=r"before\.safetensors is damaged") as told:
        compiled(checkpoint=tmp_path)
    assert "in pass 2 of 3, Recover(), after MagnitudePruning" in told.value.__notes__[0]


def test_a_pass_without_a_recipe_has_no_checkpoint(tmp_path: Path) -> None:
    class Plain:
        def plan(self, program: Program) -> fx.Plan:
            return fx.Plan(())

    with pytest.raises(fx.PlanError, match="knows passes by their recipes"):
        compiled(checkpoint=tmp_path, passes=[Plain()])


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
