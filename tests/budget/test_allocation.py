"""Allocations that compare scores: what is kept is the most there is, and it can be looked at."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import NORMALISERS, Budget, Normaliser, normalised
from fxcompress.budget.exact import Choice, most_score
from fxcompress.edit.plan import Plan
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import Criterion, MagnitudePruning, StructuredPass
from fxcompress.program import Program
from programs import PRUNABLE, program, shares

QUANTITY = st.sampled_from(["flops", "params", "macs", "bytes"])
NET = st.sampled_from(PRUNABLE)


@dataclass(frozen=True)
class Drawn(Criterion):
    """Scores drawn anew for each seed; those of some groups are a hundred times as large."""

    seed: int

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1009 + len(group.name) * group.units)
        scale = 100 ** torch.rand(1, generator=generator)
        return torch.rand(group.cells, group.units, generator=generator).double() * scale


def budget(quantity: str, share: float, allocation: str, **options: Any) -> Budget:
    values: dict[str, Any] = {quantity: share, "allocation": allocation, **options}
    return Budget(**values)


def kept_score(plan: Plan) -> float:
    """The total score of what stays."""
    assert plan.curves is not None
    total = 0.0
    for name, (shares_kept, scores) in plan.curves.lines.items():
        total += scores[shares_kept.index(plan.curves.marks[name])]
    return total


# ---- exact


@given(NET, st.integers(1, 5), st.dictionaries(QUANTITY, st.floats(0.2, 1), min_size=1, max_size=2))
def test_an_exact_allocation_fits_and_keeps_no_less_than_a_threshold(
    name: str, seed: int, asked: dict[str, float]
) -> None:
    found, criterion = program(name), Drawn(seed)
    options: dict[str, Any] = {**asked, "round_to": 1}
    try:
        plans = [
            StructuredPass(
                criterion=criterion,
                budget=Budget(**{**options, "allocation": allocation}),
            ).plan(found)
            for allocation in ("global", "exact")
        ]
    except BudgetError:
        return
    left = shares(found, plans[1])
    assert all(left[quantity] <= share for quantity, share in asked.items())
    if plans[0].curves and plans[1].curves:
        # the solver's own tolerance of the objective is 1e-6 of the largest score
        assert kept_score(plans[1]) >= kept_score(plans[0]) * (1 - 1e-5)


@given(
    st.sampled_from(["mlp", "swiglu", "fused_attention", "rotary_grouped_attention", "siblings"]),
    st.integers(1, 100),
    st.sampled_from(["flops", "params"]),
    st.floats(0.3, 0.9),
)
@settings(max_examples=15)
def test_it_is_the_best_of_all_widths(name: str, seed: int, quantity: str, share: float) -> None:
    found = program(name)
    wanted = StructuredPass(
        criterion=Drawn(seed), budget=budget(quantity, share, "exact", round_to=1, max_ratio=0.6)
    )
    try:
        plan = wanted.plan(found)
    except BudgetError:
        return
    if plan.curves is None:
        return
    groups = [found.group(name) for name in plan.curves.lines]
    best = 0.0
    for widths in itertools.product(*(range(-(-2 * g.units // 5), g.units + 1) for g in groups)):
        pairs = zip(groups, widths, strict=True)
        cost = found.cost({group: width for group, width in pairs if width < group.units})
        if getattr(cost, quantity) <= share * getattr(found.cost(), quantity):
            lines = plan.curves.lines.values()
            best = max(best, sum(y[w] for (_, y), w in zip(lines, widths, strict=True)))
    assert kept_score(plan) == pytest.approx(best, rel=1e-5)


def test_rounded_widths_are_chosen_among_those_that_rounding_gives() -> None:
    found = program("fused_attention")
    one = StructuredPass(criterion=Drawn(1), budget=budget("flops", 0.5, "exact", round_to=4))
    widths = {group.kind: width for group, width in one.plan(found).widths.items()}
    assert widths
    assert all(width in (4, 8) for kind, width in widths.items() if kind == "residual")


def test_layers_that_look_alike_choose_together() -> None:
    blocks = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(4))
    )
    found = fx.compile(blocks, (torch.randn(2, 8),))
    same = budget("params", 0.6, "exact", uniform_across_layers=True, round_to=1)
    widths = MagnitudePruning(budget=same).plan(found).widths
    assert len(widths) == 3
    assert len(set(widths.values())) == 1


def test_an_answer_that_only_the_solver_finds_fit_is_refused() -> None:
    choices = [Choice((1, 2), (1.0, 2.0))]
    with pytest.raises(BudgetError, match="finds no widths"):
        most_score(choices, [], lambda widths: False)


# ---- what makes groups comparable


@given(
    st.sampled_from([n for n in NORMALISERS if n != "none"]),
    st.lists(st.integers(1, 10_000).map(lambda n: n / 100), min_size=2, max_size=9),
    st.floats(0.1, 10),
)
@example("zscore", [0.3, 0.3, 0.3], 0.3046875)  # their mean is not 0.3 in floating point
def test_normalised_scores_keep_their_order_and_forget_their_scale(
    normaliser: Normaliser, values: list[float], scale: float
) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    once = normalised(score, normaliser)
    order = score.argsort(stable=True)
    assert bool((once[order].diff() >= -1e-12).all())
    torch.testing.assert_close(normalised(score * scale, normaliser), once, rtol=1e-6, atol=1e-9)


def test_each_normaliser_does_as_it_is_called() -> None:
    score = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert float(normalised(score, "mean").mean()) == pytest.approx(1)
    assert float(normalised(score, "max").max()) == pytest.approx(1)
    assert float(normalised(score, "sum").sum()) == pytest.approx(1)
    assert float(normalised(score, "zscore").std(correction=0)) == pytest.approx(1)
    assert normalised(score, "lamp").tolist() == pytest.approx([1 / 8, 2 / 7, 1])
    assert torch.equal(normalised(-score, "mean").argsort(), (-score).argsort())
    with pytest.raises(PlanError, match="not negative"):
        normalised(-score, "lamp")


@pytest.mark.parametrize("normaliser", ["mean", "max", "sum", "zscore"])
def test_a_budget_normalises_the_scores_of_any_criterion(normaliser: Normaliser) -> None:
    found = program("projected_residual")
    own = MagnitudePruning(budget=budget("flops", 0.5, "global"), normaliser=normaliser).plan(found)
    asked = MagnitudePruning(
        budget=budget("flops", 0.5, "global", normaliser=normaliser), normaliser="none"
    ).plan(found)
    assert asked.widths == own.widths


# ---- curves


def test_the_scores_of_every_group_can_be_drawn(tmp_path: Path) -> None:
    found = program("projected_residual")
    plan = MagnitudePruning(budget=budget("flops", 0.5, "global", round_to=1)).plan(found)
    assert plan.curves is not None
    for group in (g for g in found.groups if not g.frozen):
        shares_kept, scores = plan.curves.lines[group.name]
        assert len(shares_kept) == group.units + 1
        assert list(scores) == sorted(scores)
        width = plan.widths.get(group, group.units)
        assert plan.curves.marks[group.name] == width / group.units
    assert plan.curves.plot(tmp_path / "curves.png").stat().st_size > 0
    assert plan.curves.to_dict()["lines"].keys() == plan.curves.lines.keys()
    assert MagnitudePruning(ratio=0.5).plan(found).curves is None
