"""The published criteria: reference values, and what their definitions promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress import passes
from fxcompress.budget import Budget
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import (
    BatchNormScale,
    CoupledNorm,
    Criterion,
    FPGMPruning,
    GroupNormPruning,
    LAMPPruning,
    LayerAdaptiveMagnitude,
    Magnitude,
    MedianDistance,
    SlimmingPruning,
)
from fxcompress.passes.criteria.group_norm import shrinkage
from fxcompress.passes.structured.scores import NORMALISERS, MemberRole, lamp, normalised
from fxcompress.program import Program
from models import normal
from programs import PRUNABLE, program

BOTH: tuple[MemberRole, ...] = ("produce", "contract")
ALL: list[Any] = [
    MedianDistance(),
    MedianDistance(power=2, roles=BOTH),
    LayerAdaptiveMagnitude(),
    CoupledNorm(),
]


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (MedianDistance(aggregate="first", normaliser="none"), "fpgm_first"),
        (MedianDistance(power=2, roles=BOTH, normaliser="none"), "fpgm_tp"),
        (LayerAdaptiveMagnitude(), "lamp_group"),
        (BatchNormScale(), "bn"),
    ],
    ids=str,
)
def test_scores_are_the_reference_ones(
    scored: Program, reference_scores: dict[str, Tensor], criterion: Criterion, expected: str
) -> None:
    score = criterion.score(scored, scored.group("first"))
    torch.testing.assert_close(score[0], reference_scores[expected], rtol=1e-9, atol=1e-10)


def test_lamp_of_single_weights_is_the_reference_one(reference_scores: dict[str, Tensor]) -> None:
    found = lamp(reference_scores["W_producer"].square())
    torch.testing.assert_close(found, reference_scores["lamp_unstructured"], rtol=1e-9, atol=1e-10)


def test_the_pull_of_sparse_learning_is_the_reference_one(
    scored: Program, reference_scores: dict[str, Tensor]
) -> None:
    squares = CoupledNorm(normaliser="none").score(scored, scored.group("first"))
    torch.testing.assert_close(
        shrinkage(squares)[0], reference_scores["depgraph_sl_gamma"], rtol=1e-9, atol=1e-10
    )


def test_the_norm_of_everything_coupled_is_the_sum_of_the_members(scored: Program) -> None:
    group = scored.group("first")
    members = Magnitude(aggregate="sum", normaliser="max", roles=("produce", "contract", "affine"))
    torch.testing.assert_close(
        CoupledNorm().score(scored, group), members.score(scored, group), rtol=1e-12, atol=0
    )


# ---- laws of the scores


SCORES = st.just(0.0) | st.floats(1e-100, 100)  # smaller ones lose digits when they are scaled


@given(st.lists(SCORES, min_size=1, max_size=12), st.floats(0.01, 100))
def test_the_largest_score_of_lamp_is_one_and_scale_does_not_matter(
    values: list[float], scale: float
) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    found = lamp(score)
    assert bool(((found >= 0) & (found <= 1)).all())
    if score.max() > 0:
        assert float(found.max()) == 1
    torch.testing.assert_close(lamp(scale * score), found, rtol=1e-9, atol=1e-12)
    order = score.argsort(stable=True)
    assert bool((found[order].diff() >= 0).all())


@pytest.mark.parametrize("name", [each for each in NORMALISERS if each != "none"])
@given(st.floats(0.01, 100))
def test_normalised_scores_of_two_layers_of_other_scale_are_equal(name: Any, scale: float) -> None:
    score = normal(2, 7).double().abs()
    found = normalised(score, name)
    torch.testing.assert_close(normalised(scale * score, name), found, rtol=1e-9, atol=1e-12)
    assert found.flatten().argsort().tolist() == score.flatten().argsort().tolist()


@pytest.mark.parametrize("name", NORMALISERS)
def test_scores_that_are_all_zero_stay_zero(name: Any) -> None:
    assert not normalised(torch.zeros(1, 4, dtype=torch.float64), name).any()


@pytest.mark.parametrize("criterion", ALL, ids=str)
@given(st.sampled_from(PRUNABLE))
def test_every_group_is_scored_in_its_shape(criterion: Criterion, name: str) -> None:
    found = program(name)
    for group in (group for group in found.groups if not group.frozen):
        score = criterion.score(found, group)
        assert score.shape == (group.cells, group.units)
        assert bool(torch.isfinite(score).all())
        assert bool((score >= 0).all())


def test_a_rotation_of_what_comes_in_moves_no_distance() -> None:
    rotation = torch.linalg.qr(normal(5, 5).double()).Q
    first = nn.Linear(5, 7)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(7, 3)).double()
    args = (normal(2, 5).double(),)

    def score() -> Tensor:
        found = fx.compile(net, args)
        return MedianDistance().score(found, found.group("0"))

    before = score()
    with torch.no_grad():
        first.weight.copy_(first.weight @ rotation)
    torch.testing.assert_close(score(), before, rtol=1e-10, atol=0)


def test_what_lies_between_the_others_is_the_first_to_go() -> None:
    first = nn.Linear(1, 3, bias=False)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[-1.0], [0.25], [1.0]]))
    found = fx.compile(net, (torch.ones(2, 1, dtype=torch.float64),))
    score = MedianDistance(normaliser="none").score(found, found.group("0"))
    torch.testing.assert_close(score, torch.tensor([[3.25, 2.0, 2.75]], dtype=torch.float64))
    squares = MedianDistance(power=2, normaliser="none").score(found, found.group("0"))
    assert float(squares[0, 0]) == float(squares[0, 2]), "of squares, the sign is lost"


def test_units_that_score_alike_are_pulled_alike() -> None:
    assert shrinkage(torch.full((1, 3), 2.0)).tolist() == [[1, 1, 1]]
    assert shrinkage(torch.tensor([0.0, 4.0])).tolist() == [16, 1]


# ---- passes


PASSES: list[Any] = [FPGMPruning, LAMPPruning, GroupNormPruning, SlimmingPruning]


@pytest.mark.parametrize("one", PASSES)
def test_what_is_left_is_what_masking_leaves(one: Any) -> None:
    small = fx.apply(program("conv_chain"), one(ratio=0.4, round_to=1))
    assert small.report.checks[-1].kind == "zero-masked"
    assert small.report.flops.after < small.report.flops.before


@pytest.mark.parametrize("one", PASSES)
def test_a_global_budget_is_met(one: Any) -> None:
    small = fx.apply(program("conv_chain"), one(budget=Budget(flops=0.5, allocation="global")))
    assert small.report.flops.ratio <= 0.5


@pytest.mark.parametrize(
    "one",
    [
        FPGMPruning(0.5, power=2, roles=BOTH, aggregate="max"),
        LAMPPruning(budget=Budget(flops=0.5, allocation="global")),
        SlimmingPruning(0.25, normaliser="mean"),
        GroupNormPruning(0.25, normaliser="lamp"),
    ],
    ids=repr,
)
def test_the_repr_of_a_pass_makes_it_again(one: object) -> None:
    assert eval(repr(one), {**vars(passes), "Budget": Budget}) == one


def test_without_a_batch_norm_there_is_no_slimming() -> None:
    with pytest.raises(BudgetError, match=r"first \(no BatchNorm scales it\)"):
        SlimmingPruning(ratio=0.5).plan(program("mlp"))
    found = program("mlp")
    with pytest.raises(PlanError, match="group first: it has no BatchNorm with a scale"):
        BatchNormScale().score(found, found.group("first"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FPGMPruning(0.5, power=3), "power must be 1 or 2, not 3"),  # type: ignore[arg-type]
        (lambda: LAMPPruning(0.5, roles=("out",)), r"roles\[0\] must be .*, not 'out'"),  # type: ignore[arg-type]
        (lambda: GroupNormPruning(0.5, normaliser="l2"), "normaliser must be .* not 'l2'"),  # type: ignore[arg-type]
        (lambda: SlimmingPruning(0.5, aggregate="mode"), "aggregate must be .* not 'mode'"),  # type: ignore[arg-type]
    ],
)
def test_options_are_checked(make: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make()
