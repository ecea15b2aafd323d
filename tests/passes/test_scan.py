"""Sensitivity: what a group alone costs when it shrinks, measured and not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import FoldBatchNorm, Magnitude, MagnitudePruning
from fxcompress.program import Program


class Net(nn.Module):
    """A hidden width of which half the units do nothing, and one of which every unit matters."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.busy, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.busy(F.relu(self.idle(x)))))  # type: ignore[no-any-return]


def loss_of(out: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(out.detach(), labels))


def accuracy(out: Tensor, labels: Tensor) -> float:
    return float((out.argmax(1) == labels).float().mean())


def built(**task: Any) -> Program:
    torch.manual_seed(0)
    net = Net().double().eval()
    with torch.no_grad():
        net.idle.weight[::2], net.idle.bias[::2] = 0, 0
    inputs = torch.randn(24, 5, dtype=torch.float64)
    labels = net(inputs).argmax(1)
    data = [(inputs[:16], labels[:16]), (inputs[16:], labels[16:])]  # of different sizes
    options = {"loss": F.cross_entropy, "metric": accuracy} | task
    return fx.compile(net, (inputs,), task=fx.Task(data, **options))


def test_each_figure_is_the_loss_of_the_program_with_that_group_cut() -> None:
    program = built()
    assert program.task is not None
    found = fx.sensitivity(program, MagnitudePruning(ratio=0.9), ratios=(0.25, 0.5))
    inputs, labels = (torch.cat(parts) for parts in zip(*program.task.data, strict=True))
    # means of two batches against one over all samples: two roundings of float64
    assert found.dense.loss == pytest.approx(loss_of(program(inputs), labels))
    assert found.dense.metric == 1
    assert [(t.group, t.ratio, t.kept) for t in found.trials] == [
        ("idle", 0.25, 6), ("idle", 0.5, 4), ("busy", 0.25, 6), ("busy", 0.5, 4)
    ]  # fmt: skip
    for trial in found.trials:
        one = MagnitudePruning(ratio=trial.ratio, groups=trial.group, round_to=1)
        out = fx.apply(program, one)(inputs)
        assert trial.loss == pytest.approx(loss_of(out, labels))
        assert trial.metric == pytest.approx(accuracy(out, labels))


def test_idle_units_cost_nothing_and_busy_ones_do() -> None:
    found = fx.sensitivity(built(), Magnitude(), ratios=(0.5,))
    idle, busy = found.trials
    assert idle.loss == pytest.approx(found.dense.loss)
    assert busy.loss != pytest.approx(found.dense.loss)
    assert found.dense.loss is not None


def test_a_pass_and_its_criterion_say_the_same() -> None:
    program = built()
    by_pass = fx.sensitivity(program, MagnitudePruning(budget=fx.Budget(flops=0.5)))
    assert by_pass.trials == fx.sensitivity(program, Magnitude()).trials


def test_the_table_the_data_and_the_picture_tell_the_same(tmp_path: Path) -> None:
    found = fx.sensitivity(built(), Magnitude(), ratios=(0.5, 0.01))
    assert found.skipped == (("idle", 0.01), ("busy", 0.01))
    lines = str(found).splitlines()
    assert lines[0].startswith("dense: ")
    assert lines[1].split() == ["group", "kind", "units", "-50%"]
    assert [line.split()[0] for line in lines[2:]] == ["idle", "busy"]
    assert found.to_dict()["trials"][0]["group"] == "idle"
    line = found.curves().lines["busy"]
    assert line == ((0.0, 0.5), (found.dense.loss, found.trials[1].loss))
    assert found.plot(tmp_path / "loss.svg").read_text().startswith("<?xml")


def test_a_metric_alone_is_enough_and_the_program_stays_as_it_was() -> None:
    program = built(loss=None)
    program.module.train()
    found = fx.sensitivity(program, Magnitude(), ratios=(0.5,))
    assert program.module.training
    assert found.dense.loss is None
    assert found.curves().y == "metric"


def test_data_may_be_given_for_the_scan_alone() -> None:
    program = built()
    assert program.task is not None
    other = fx.Task(list(program.task.data)[:1], F.cross_entropy)
    assert fx.sensitivity(program, Magnitude(), (0.5,), other).dense.metric is None


@pytest.mark.parametrize(
    ("program", "method", "ratios", "words"),
    [
        (lambda: built(loss=None, metric=None), Magnitude(), (0.5,), "a loss or a metric"),
        (lambda: built(loss=lambda out, _: out.sum() * float("nan")), Magnitude(), (0.5,), "nan"),
        (built, Magnitude(), (), "shares of units"),
        (built, Magnitude(), (1.0,), r"ratios\[0\] must be a number in \(0, 1\)"),
        (built, FoldBatchNorm(), (0.5,), "method must be"),
        (lambda: fx.compile(Net(), (torch.randn(2, 5),)), Magnitude(), (0.5,), "there are none"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    program: Any, method: Any, ratios: Any, words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        fx.sensitivity(program(), method, ratios)


def test_only_groups_that_are_named_change() -> None:
    program = built()
    assert [g.name for g in MagnitudePruning(ratio=0.5, groups="b*").plan(program).widths] == [
        "busy"
    ]
    with pytest.raises(BudgetError, match="no group is called 'busi'; the nearest are 'busy'"):
        MagnitudePruning(ratio=0.5, groups=("busi",)).plan(program)
