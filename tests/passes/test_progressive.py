"""A pass in steps ends where the pass ends, and looks anew after every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Budget
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import (
    Criterion,
    Magnitude,
    MagnitudePruning,
    RandomPruning,
    StructuredPass,
    progressive,
)
from fxcompress.program import Program
from programs import PRUNABLE, program


@dataclass(frozen=True)
class Noted(Criterion):
    """Magnitudes, and a note of how many units there were each time."""

    seen: list[int] = field(default_factory=list, repr=False, compare=False)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        self.seen.append(group.units)
        return Magnitude().score(program, group)


def _chain() -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)), (torch.randn(2, 5),)


def run(found: Program, passes: tuple[Any, ...]) -> Program:
    for one in passes:
        found = fx.apply(found, one, verify=False)
    return found


@given(
    st.sampled_from(PRUNABLE),
    st.integers(2, 5),
    st.floats(0.3, 0.95),
    st.sampled_from(["flops", "params"]),
    st.sampled_from(["uniform", "global"]),
)
def test_the_last_step_is_within_the_budget(
    name: str, steps: int, share: float, quantity: str, allocation: str
) -> None:
    options: dict[str, Any] = {quantity: share, "allocation": allocation}
    try:
        small = run(program(name), progressive(MagnitudePruning(budget=Budget(**options)), steps))
    except BudgetError:
        return  # no step so small, or nothing so little
    cost, dense = small.cost(), program(name).cost()
    assert getattr(cost, quantity) <= share * getattr(dense, quantity)
    assert len(small.history) == steps


@given(st.floats(0.05, 0.95), st.integers(1, 12))
def test_shares_multiply_to_the_one_that_was_asked(share: float, steps: int) -> None:
    passes = progressive(RandomPruning(budget=Budget(flops=share)), steps)
    shares = [one.budget.flops for one in passes if one.budget]
    assert prod(map(float, shares)) == pytest.approx(share, rel=1e-10)  # type: ignore[arg-type]
    assert prod(map(float, shares)) <= share  # type: ignore[arg-type]


@given(st.floats(0.05, 0.95), st.integers(1, 12))
def test_ratios_leave_what_one_ratio_leaves(ratio: float, steps: int) -> None:
    left = prod(1 - (one.ratio or 0) for one in progressive(RandomPruning(ratio=ratio), steps))
    assert left == pytest.approx(1 - ratio, rel=1e-9)


def test_units_leave_in_equal_numbers_and_are_scored_after_every_step() -> None:
    found = fx.compile(*_chain())
    noted = Noted()
    small = run(found, progressive(StructuredPass(criterion=noted, ratio=0.5, round_to=1), 4))
    assert [group.units for group in small.groups if not group.frozen] == [8]
    assert noted.seen == [16, 14, 12, 10]


def test_one_step_is_the_pass_itself() -> None:
    one = MagnitudePruning(budget=Budget(flops=0.4, round_to=4), max_ratio=0.7)
    assert progressive(one, 1) == (one,)


def test_only_the_last_step_rounds() -> None:
    passes = progressive(MagnitudePruning(budget=Budget(flops=0.5, round_to=8)), 3)
    assert [one.limits.round_to for one in passes] == [1, 1, 8]


def test_a_limit_holds_for_all_steps_together() -> None:
    found = fx.compile(*_chain())
    one = MagnitudePruning(budget=Budget(flops=0.7, allocation="global"), max_ratio=0.5)
    assert [each.max_ratio for each in progressive(one, 2)] == pytest.approx([1 / 4, 1 / 3])
    small = run(found, progressive(one, 2))
    assert all(group.units >= 8 for group in small.groups if not group.frozen)


def test_absolute_numbers_and_no_steps_are_refused() -> None:
    with pytest.raises(PlanError, match=r"flops of .* is an absolute number"):
        progressive(MagnitudePruning(budget=Budget(flops=1000)), 2)
    with pytest.raises(PlanError, match=r"steps must be an int in .* not 0"):
        progressive(MagnitudePruning(ratio=0.5), 0)
