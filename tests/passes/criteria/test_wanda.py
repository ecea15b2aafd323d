"""Wanda-sp and the expansions of the loss: reference values and what their definitions promise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from fxcompress.errors import PlanError
from fxcompress.layers.weights import consumers
from fxcompress.passes import Taylor, TaylorPruning, WandaPruning, WeightTimesInput
from fxcompress.passes.criteria.taylor import Expanded
from fxcompress.program import Program
from fxcompress.stats import Gradients
from fxcompress.task import Task
from normed_convs import NormedConvs
from references import Through

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


def arrays(shared: Path, name: str) -> dict[str, Tensor]:
    with np.load(shared / "golden" / name) as found:
        return {key: torch.from_numpy(found[key]) for key in found.files}


def test_wanda_for_units_has_the_reference_values(shared: Path) -> None:
    known = arrays(shared, "wanda_flap.npz")
    x = known["X"].T.contiguous()
    program = fx.compile(Through(known["W"]), (x,), task=list(x.split(7)))
    score = WeightTimesInput(normaliser="none").score(program, program.group("enter"))
    close(score[0], known["wanda_sp"])


def test_a_head_is_the_sum_of_its_dims() -> None:
    model, args, _ = models.build("fused_attention")
    program = fx.compile(model, args, task=[args[0]])
    plain = WeightTimesInput(normaliser="none")
    heads = plain.score(program, program.group("qkv:heads"))
    dims = plain.score(program, program.group("qkv:vo"))
    close(heads[0], dims.sum(1))


@pytest.mark.parametrize("name", ["grouped_conv", "reused_module", "flatten_head", "dense_concat"])
def test_every_unit_of_a_group_that_is_read_has_a_score(name: str) -> None:
    model, args, kwargs = models.build(name)
    program = fx.compile(model, args, kwargs, task=[args[0]])
    for group in program.groups:
        if group.frozen or not consumers(program, group):
            continue
        score = WeightTimesInput().score(program, group)
        assert score.shape == (group.cells, group.units)
        assert bool((score >= 0).all())
        close(score.mean(), torch.ones((), dtype=torch.float64))


def test_a_dead_unit_goes_first() -> None:
    model, args, _ = models.build("mlp")
    with torch.no_grad():
        for name, value in (("first.weight", 0), ("first.bias", -1)):
            model.get_parameter(name)[4] = value
    small = fx.compile(
        model,
        args,
        task=[models.rebatch(args, 64)[0]],
        passes=[WandaPruning(ratio=0.15, round_to=1, include="first.weight:out")],
    )
    kept = small.kept["first.weight"][0]
    assert kept is not None
    assert 4 not in kept


# ---- expansions of the loss


def scored(shared: Path) -> tuple[Program, Gradients]:
    known = arrays(shared, "baseline_scores.npz")
    net = NormedConvs(*(known[name] for name in ("W_producer", "W_consumer", "bn_gamma"))).eval()
    program = fx.compile(net, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    mean = {
        "first.weight": known["grad_producer"],
        "second.weight": known["grad_consumer"],
        "norm.weight": known["bn_grad"],
        "norm.bias": torch.zeros(5, dtype=torch.float64),
    }
    return program, Gradients(mean, 1)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("elements", "taylor_sum_abs"),
        ("units", "taylor_multi"),
        ("norms", "taylor_bn_molchanov"),
    ],
)
def test_expansions_have_the_reference_values(shared: Path, form: Any, expected: str) -> None:
    program, found = scored(shared)
    score = Expanded(Taylor(form=form), found).score(program, program.group("first"))
    close(score[0], arrays(shared, "baseline_scores.npz")[expected])


def test_the_diagonal_fisher_has_the_reference_values(shared: Path) -> None:
    """Of single samples: the square of the batch's gradient would be another quantity."""
    known = arrays(shared, "fisher_eigendamage.npz")
    layer = Through(known["W"])
    batches = list(zip(known["X"].split(5), known["y"].split(5), strict=True))
    program = fx.compile(layer, (known["X"],), task=Task(batches, F.cross_entropy))
    score = Taylor(form="fisher", roles=("contract",)).score(program, program.group("enter"))
    close(score[0], (known["W"].square() * known["empirical_fisher_diag"]).sum(0))


def labelled(name: str, count: int = 12) -> Program:
    model, args, kwargs = models.build(name)
    x = models.rebatch(args, count)[0]
    labels = torch.randint(4, (count,), generator=torch.Generator().manual_seed(3))
    batches = list(zip(x.split(5), labels.split(5), strict=True))
    return fx.compile(model, args, kwargs, task=Task(batches, F.cross_entropy))


def test_the_expansion_of_a_unit_is_the_slope_of_the_loss_in_its_scale() -> None:
    """Σ w g of a unit's rows and bias is dL/ds where they are scaled by s: by differences."""
    program = labelled("conv_chain")
    assert program.task is not None
    group = program.group("second.0")
    score = Taylor(form="units", roles=("contract",)).score(program, group)
    inputs, labels = (torch.cat(each) for each in zip(*program.task.data, strict=True))
    weight = program.module.get_parameter("head.weight").detach()

    def loss(unit: int, scale: float) -> Tensor:
        scaled = weight.clone()
        scaled[:, unit] *= scale
        with torch.no_grad():
            other = program.with_values({"head.weight": scaled})
            return F.cross_entropy(other(inputs), labels)

    for unit in range(group.units):
        slope = (loss(unit, 1 + 1e-5) - loss(unit, 1 - 1e-5)) / 2e-5
        # central differences of a smooth function: the error is of the order of 1e-10
        torch.testing.assert_close(score[0, unit], slope.abs(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", ["elements", "units", "fisher"])
@pytest.mark.parametrize("name", ["grouped_conv", "flatten_head", "projected_residual"])
def test_expansions_score_every_group(name: str, form: Any) -> None:
    program = labelled(name, 6)
    groups = [group for group in program.groups if not group.frozen]
    prepared = Taylor(form=form).prepare(program, groups)
    for group in groups:
        score = prepared.score(program, group)
        assert score.shape == (group.cells, group.units)
        assert bool((score >= 0).all())
        assert float(score.max()) > 0


def test_pruning_by_an_expansion_needs_labels() -> None:
    program = labelled("conv_chain")
    small = fx.apply(program, TaylorPruning(ratio=0.3))
    assert small.report.params.after < small.report.params.before
    model, args, _ = models.build("conv_chain")
    with pytest.raises(PlanError, match=r"Taylor\(form='elements'\) needs a loss; pass task=Task"):
        fx.compile(model, args, task=[args[0]], passes=[TaylorPruning(ratio=0.3)])


def test_groups_without_a_batchnorm_have_no_expansion_of_norms() -> None:
    with pytest.raises(PlanError, match=r"hidden \(it has no BatchNorm to expand the loss in"):
        fx.apply(labelled("flatten_head"), TaylorPruning(ratio=0.3, form="norms", exclude="conv.*"))
