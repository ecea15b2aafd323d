"""Recovery without weights: statistics of BatchNorm, and the parameters of other norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.plan import Replace
from fxcompress.errors import PlanError
from fxcompress.passes import Folding, RecalibrateBatchNorm, TuneNorms
from fxcompress.program import Program
from fxcompress.task import Task
from models import build, normal, randomize, rebatch
from programs import program


def with_data(name: str, batches: int = 3) -> Program:
    model, args, kwargs = build(name)
    return fx.compile(model, args, kwargs, task=[rebatch(args, 8, seed) for seed in range(batches)])


def statistics(found: Program) -> dict[str, Tensor]:
    names = ("running_mean", "running_var")
    return {k: v for k, v in found.module.named_buffers() if k.endswith(names)}


def test_statistics_become_plain_means_over_the_data() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))  # type: ignore[no-any-return]

    data = [normal(size, 4, seed=size).double() for size in (6, 6, 3)]
    found = fx.compile(randomize(Net()).double(), (data[0],), task=data)
    before = {name: value.clone() for name, value in found.module.state_dict().items()}
    after = fx.apply(found, RecalibrateBatchNorm())
    sizes = torch.tensor([6.0, 6.0, 3.0]).double() / 15
    mean = sum(w * x.mean(0) for w, x in zip(sizes, data, strict=True))
    var = sum(w * x.var(0) for w, x in zip(sizes, data, strict=True))
    torch.testing.assert_close(statistics(after)["norm.running_mean"], mean)
    torch.testing.assert_close(statistics(after)["norm.running_var"], var)
    for name, value in found.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_recalibrating_again_changes_nothing() -> None:
    found = with_data("projected_residual")
    small = fx.apply(fx.apply(found, Folding(ratio=0.5, round_to=1)), RecalibrateBatchNorm())
    again = fx.apply(small, RecalibrateBatchNorm())
    for name, value in statistics(again).items():
        torch.testing.assert_close(value, statistics(small)[name])


def test_as_many_batches_as_asked_are_run() -> None:
    found = with_data("conv_chain")
    assert found.task is not None
    first = fx.compile(*build("conv_chain"), task=[next(iter(found.task.data))])
    some, one = (
        RecalibrateBatchNorm(batches=1).plan(found).edits,
        RecalibrateBatchNorm().plan(first).edits,
    )
    for few, all_of_it in zip(some, one, strict=True):
        assert isinstance(few, Replace)
        assert isinstance(all_of_it, Replace)
        assert torch.equal(few.value, all_of_it.value)


def labelled(name: str, loss: Any) -> Program:
    model, args, kwargs = build(name, torch.float32)
    data = [(rebatch(args, 8, seed), seed) for seed in range(4)]
    return fx.compile(model, args, kwargs, task=Task(data, loss))


def test_only_norms_are_tuned_and_the_loss_falls() -> None:
    found = labelled("convnext_block", lambda output, _: output.square().mean())
    plan = TuneNorms(lr=1e-2).plan(found)
    assert plan.edits
    names = {edit.parameter for edit in plan.edits if isinstance(edit, Replace)}
    assert all("norm" in name for name in names)
    tuned = fx.apply(found, TuneNorms(lr=1e-2))
    batch = build("convnext_block", torch.float32)[1]
    with torch.no_grad():
        assert float(tuned(*batch).square().mean()) < float(found(*batch).square().mean())


def test_what_is_missing_is_named() -> None:
    with pytest.raises(PlanError, match="pass task="):
        RecalibrateBatchNorm().plan(program("conv_chain"))
    with pytest.raises(PlanError, match="batches must be an int of at least 1"):
        RecalibrateBatchNorm(batches=0)
    with pytest.raises(PlanError, match="empty"):
        RecalibrateBatchNorm().plan(fx.compile(*build("conv_chain"), task=[]))
    with pytest.raises(PlanError, match="RecalibrateBatchNorm"):
        TuneNorms().plan(labelled("conv_chain", lambda output, _: output.mean()))
    with pytest.raises(PlanError, match="loss"):
        TuneNorms().plan(with_data("convnext_block"))
