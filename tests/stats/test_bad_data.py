"""Data that loaders give wrongly: every reader refuses them with one error that names the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress import stats
from fxcompress.passes import (
    IPPRO,
    FLAPPruning,
    Folding,
    KronOBSPruning,
    LeastSquaresPruning,
    RecalibrateBatchNorm,
    TaylorPruning,
    TuneNorms,
    WandaPruning,
)
from fxcompress.train import Trainer, evaluate, reading, recalibrate
from public_program import images, program

loss_of = nn.functional.cross_entropy
GOOD = images(), torch.tensor([0, 2])


def accuracy(output: Tensor, labels: Tensor) -> float:
    return float((output.argmax(1) == labels).float().mean())


@dataclass
class Loader:
    """Batches from a function; a length only where one is given."""

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.make()


class Sized(Loader):
    def __len__(self) -> int:
        return 2


def raises() -> Iterator[Any]:
    yield GOOD
    raise ValueError("disk gone")


def endless() -> Iterator[Any]:
    while True:
        yield GOOD


def then(inputs: Any) -> Callable[[], Iterator[Any]]:
    """A good batch and then another."""

    def batches() -> Iterator[Any]:
        yield GOOD
        yield inputs, GOOD[1]

    return batches


def with_nan() -> Tensor:
    found = images()
    found[0, 0, 0, 0] = torch.nan
    return found


PLANS = {
    type(one).__name__: one
    for one in (
        FLAPPruning(ratio=0.5),
        Folding(ratio=0.5, statistics="data"),
        IPPRO(ratio=0.5),
        KronOBSPruning(ratio=0.5, exclude="norm.weight"),
        LeastSquaresPruning(ratio=0.5),
        RecalibrateBatchNorm(),
        TaylorPruning(ratio=0.5),
        TuneNorms(),
        WandaPruning(ratio=0.5),
    )
}
READERS: dict[str, Callable[[Any], Any]] = {
    **{name: one.plan for name, one in PLANS.items()},
    "sensitivity": lambda p: fx.sensitivity(p, WandaPruning(ratio=0.5), (0.5,)),
    "gradients": stats.gradients,
    "moments": lambda p: stats.moments(p, [p.group("mid")]),
    "Trainer.fit": lambda p: Trainer().fit(copy.deepcopy(p.module), p.task),
    "evaluate": lambda p: evaluate(p.module, p.task),
    "recalibrate": lambda p: recalibrate(copy.deepcopy(p.module), p.task),
}
FAULTS: dict[str, tuple[Any, str]] = {
    "nothing": ([], "empty"),
    "nothing, of a loader": (Loader(lambda: iter(())), "empty"),
    "an error in the second batch": (Loader(raises), "batch 2 .*ValueError: disk gone"),
    "no end": (Loader(endless), "no length and do not end after 20"),
    "more than its length": (Sized(endless), "length of 2 batches and go on"),
    "another type": (Loader(then(images().double())), "batch 2 .*another kind.*float64"),
    "another rank": (Loader(then(images()[0])), "batch 2 .*another kind"),
    "another structure": (Loader(then({"x": images()})), "batch 2 .*another kind"),
    "NaN": (Loader(then(with_nan())), "batch 2 .*NaN"),
    "images of another size": ([(torch.ones(2, 1, 4), GOOD[1])], r"[(\[]2, 1, 4[)\]]"),
    "numbers of another type": ([(images().long(), GOOD[1])], "int64"),
    "tensors without data": ([(images().to("meta"), GOOD[1])], "batch 1 .*cannot go to cpu"),
    "no tensor": ([("image.png", GOOD[1])], r"no tensor|image\.png"),
    "too many inputs": (
        [((images(), images()), GOOD[1])],
        "argument 1|fails on the inputs|2 arg",
    ),
}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST", 20)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_bad_data_are_refused_by_whoever_reads_them(reader: str, fault: str) -> None:
    data, words = FAULTS[fault]
    with pytest.raises(fx.FxCompressError, match=words):
        READERS[reader](replace(program(), task=fx.Task(data, loss_of, accuracy)))


def test_the_error_of_a_loader_is_the_cause() -> None:
    with pytest.raises(fx.PlanError) as caught:
        stats.gradients(replace(program(), task=fx.Task(Loader(raises), loss_of)))
    assert isinstance(caught.value.__cause__, ValueError)


LOSSES: dict[str, tuple[Any, str]] = {
    "a vector": (lambda out, _: out.sum(1), "one number"),
    "a float": (lambda out, _: 1.0, "one number"),
    "none": (lambda out, _: None, "one number"),
    "an error": (lambda out, _: out.nothing, "AttributeError"),
    "no gradient": (lambda out, labels: loss_of(out, labels).detach(), "detach"),
    "NaN": (lambda out, labels: loss_of(out, labels) * torch.nan, "nan"),
    "none at all": (None, "loss"),
}


@pytest.mark.parametrize("fault", LOSSES)
@pytest.mark.parametrize(
    "reader", ["TaylorPruning", "IPPRO", "TuneNorms", "gradients", "Trainer.fit"]
)
def test_a_loss_is_one_number_that_can_be_differentiated(reader: str, fault: str) -> None:
    loss, words = LOSSES[fault]
    with pytest.raises(fx.FxCompressError, match=words):
        READERS[reader](replace(program(), task=fx.Task([GOOD], loss)))


@pytest.mark.parametrize("reader", ["TaylorPruning", "TuneNorms", "gradients", "Trainer.fit"])
def test_labels_that_a_loss_needs_are_asked_for(reader: str) -> None:
    with pytest.raises(fx.FxCompressError, match="labels"):
        READERS[reader](replace(program(), task=fx.Task([images()], loss_of)))


def test_a_metric_is_one_number() -> None:
    metrics: list[Any] = [lambda *_: "good", lambda out, _: out, lambda out, _: out.nothing]
    for metric in metrics:
        with pytest.raises(fx.FxCompressError, match="metric"):
            evaluate(program().module, fx.Task([GOOD], metric=metric))


def test_a_model_without_a_gradient_is_refused_in_words() -> None:
    """ReLU's gradient needs what the write in place takes away."""

    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x)).add_(0.3))  # type: ignore[no-any-return]

    x = torch.randn(2, 4)
    task = fx.Task([(x, torch.zeros(2, 3))], nn.functional.mse_loss)
    program = fx.compile(Overwritten(), (x,), task=task)
    with pytest.raises(fx.PlanError, match=r"has no gradient.*operation in place"):
        fx.apply(program, fx.passes.TaylorPruning(ratio=0.5))
