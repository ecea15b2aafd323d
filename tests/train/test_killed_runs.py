"""Runs that are stopped go on to the same result, and to no other run's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxcompress as fx
from checkpoints import stored
from fxcompress.passes import MagnitudePruning, NMSparsity
from fxcompress.program import Program
from models import normal
from stepped import KILL, PASSES, Net, compiled, net

LAZILY = (MagnitudePruning(ratio=0.5), MagnitudePruning(ratio=0.3, round_to=1))


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
    code = f"import stepped; stepped.compiled(2, checkpoint={str(tmp_path)!r})"
    places = str(Path(__file__).parents[1])
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
    class Doubled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    one, other = Net().eval(), Doubled().eval()
    other.load_state_dict(one.state_dict())
    x = normal(2, 2, 6, 6)
    half = [MagnitudePruning(ratio=0.5)]
    small = fx.compile(one, (x,), passes=half, checkpoint=tmp_path)
    twice = fx.compile(other, (x,), passes=half, checkpoint=tmp_path)
    torch.testing.assert_close(twice(x), 2 * small(x), rtol=1e-6, atol=0)


def test_a_run_on_values_that_lie_in_files_goes_on_with_all_of_them(tmp_path: Path) -> None:
    model, x = net(), normal(2, 2, 6, 6).double()
    options: dict[str, Any] = {"weights": stored(model, tmp_path / "weights")}
    expected = fx.compile(model, (x,), passes=LAZILY, **options)
    expected.save(tmp_path / "expected.fxc")
    options["checkpoint"] = tmp_path / "kept"
    for passes in (LAZILY[:1], LAZILY, LAZILY):
        found = fx.compile(model, (x,), passes=passes, **options)
        found.save(tmp_path / "found.fxc")
    assert_same(fx.load(tmp_path / "found.fxc"), fx.load(tmp_path / "expected.fxc"))


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
