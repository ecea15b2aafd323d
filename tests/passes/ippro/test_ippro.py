"""IPPRO on programs: the signal of D three ways, what is scored, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Budget
from fxcompress.errors import PlanError
from fxcompress.passes import IPPRO
from fxcompress.passes.ippro.injection import _axes, _varies, by_graph, by_hooks, inject, remove
from fxcompress.passes.ippro.method import PROscore
from fxcompress.passes.ippro.targets import Target, find_targets
from fxcompress.program import Program
from fxcompress.stats import gradients
from fxcompress.task import Task
from models import build, rebatch, tensors
from programs import PRUNABLE

NETS = ("mlp", "projected_residual", "grouped_conv", "dense_concat", "swiglu", "prelu",
        "fused_attention", "rotary_grouped_attention", "flatten_head", "pixel_shuffle")  # fmt: skip


def loss_of(output: Any, target: Tensor) -> Tensor:
    return sum(((t.double() - target) ** 2).mean() for t in tensors(output))  # type: ignore[return-value]


def with_task(name: str, sizes: tuple[int, ...] = (3, 2)) -> Program:
    model, args, kwargs = build(name)
    data = [
        (rebatch(args, size, seed), torch.ones(size).double()[:0].sum() + seed)
        for seed, size in enumerate(sizes)
    ]
    return fx.compile(model, args, kwargs, task=Task(data, loss_of))


def free(found: Program) -> list[ChannelGroup]:
    return [group for group in found.groups if group.frozen is None]


def targets_of(found: Program) -> list[Target]:
    return [target for group in free(found) for target in find_targets(found, group)]


def close(found: Tensor, wanted: Tensor) -> None:
    # Sums over positions in another order, of terms that may cancel.
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_the_graph_and_the_hooks_see_the_same_signal(name: str) -> None:
    found = with_task(name)
    targets = targets_of(found)
    names = sorted({each for target in targets for each in target.names})
    graph, injected = by_graph(found, targets, names)
    hooks, summed = by_hooks(found, targets, names)
    plain = gradients(found, names)
    assert injected.keys() == summed.keys()
    for key, value in injected.items():
        close(value, summed[key])
    for each in names:
        assert torch.equal(graph.mean[each], plain.mean[each])
        close(hooks.mean[each], plain.mean[each])


@pytest.mark.parametrize("name", ["conv_chain", "swiglu", "padded_residual"])
def test_the_injection_changes_nothing_and_leaves_no_trace(name: str) -> None:
    found = with_task(name)
    places = {place: target.group for target in targets_of(found) for place in target.places}
    assert places
    shapes = {place.input: _varies(_axes(found, place), group) for place, group in places.items()}
    before, code = found(*found.args), str(found.module.graph)
    made = inject(found, places, shapes)
    for one, other in zip(tensors(made.program(*found.args)), tensors(before), strict=True):
        assert torch.equal(one, other)
    assert str(found.module.graph) == code
    after = remove(made)
    assert str(after.module.graph) == code
    assert after.module.code == found.module.code
    assert set(after.module.state_dict()) == set(found.module.state_dict())


@pytest.mark.parametrize("name", ["conv_chain", "mlp"])
def test_signals_through_the_identity_are_taylor_terms(name: str) -> None:
    found = with_task(name)
    for target in targets_of(found):
        for place in target.places:
            if place.input == place.output:
                _, signals = by_hooks(found, [target], target.names)
                grads = gradients(found, list(target.names)).mean
                layer = target.filters(found, grads, signals[target.group, place])
                close(layer.signal, layer.taylor)


@pytest.mark.parametrize("name", PRUNABLE)
def test_how_the_data_are_cut_does_not_matter(name: str) -> None:
    model, args, kwargs = build(name)
    if kwargs or len(args) > 1:
        pytest.skip("its batches hold several inputs")
    whole = rebatch(args, 6)[0]
    scores = []
    for sizes in ((6,), (4, 2)):
        data = [(part, torch.tensor(0.5)) for part in whole.split(sizes)]
        found = fx.compile(model, args, kwargs, task=Task(data, loss_of))
        criterion = PROscore(lam=1e-3, injection="hook").prepare(found, free(found))
        scores.append([criterion.score(found, group) for group in free(found)])
    for one, other in zip(*scores, strict=True):
        close(one, other)


# ---- the pass


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_net_is_pruned(name: str) -> None:
    found = with_task(name)
    if found.kwargs or len(found.args) > 1:
        pytest.skip("its batches hold several inputs")
    for injection in ("graph", "hook"):
        small = fx.apply(found, IPPRO(ratio=0.4, round_to=1, injection=injection))
        assert small.report.checks[-1].kind == "zero-masked"


def test_a_global_budget_compares_units_of_all_layers() -> None:
    found = with_task("conv_chain")
    budget = Budget(params=0.6, allocation="global")
    plan = IPPRO(budget=budget, round_to=1, score="slope", samples=4).plan(found)
    assert found.cost(plan.widths).params <= 0.6 * found.cost().params


def test_bad_input_is_refused() -> None:
    model, args, kwargs = build("mlp")
    with pytest.raises(PlanError, match="pass task="):
        IPPRO(ratio=0.5).plan(fx.compile(model, args, kwargs))
    unlabelled = fx.compile(model, args, kwargs, task=Task([args[0]], loss_of))
    with pytest.raises(PlanError, match="labels"):
        IPPRO(ratio=0.5).plan(unlabelled)
    nan = Task([(args[0], torch.tensor(float("nan")))], loss_of)
    with pytest.raises(PlanError, match="loss is nan"):
        IPPRO(ratio=0.5).plan(fx.compile(model, args, kwargs, task=nan))
    with pytest.raises(PlanError, match="above 0"):
        IPPRO(ratio=0.5, lam=0.0)
    with pytest.raises(PlanError, match="score must be 'proscore' or 'slope'"):
        IPPRO(ratio=0.5, score="angle")  # type: ignore[arg-type]
