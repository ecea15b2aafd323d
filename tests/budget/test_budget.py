"""Budgets hold, and what cannot be held is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fxcompress as fx
from budgeted import ALLOCATION, NET, blocks, movable
from fxcompress.budget import Budget, Limits
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import MagnitudePruning, RandomPruning
from programs import count, program, shares

QUANTITY = st.sampled_from(["flops", "params", "macs", "bytes"])


def asking(quantity: str, value: float, allocation: Any, round_to: Any = "auto") -> Budget:
    options: dict[str, Any] = {quantity: value, "allocation": allocation, "round_to": round_to}
    return Budget(**options)


# ---- budgets


@given(
    NET,
    QUANTITY,
    st.floats(0.02, 1),
    ALLOCATION,
    st.sampled_from(["auto", 1, 4, "ort-cpu-avx2"]),
)
def test_the_achieved_cost_is_never_above_the_asked_one(
    name: str, quantity: str, share: float, allocation: Any, round_to: Any
) -> None:
    found = program(name)
    try:
        plan = MagnitudePruning(budget=asking(quantity, share, allocation, round_to)).plan(found)
    except BudgetError:
        return  # that this is so only where nothing fits is the next law
    assert shares(found, plan)[quantity] <= share


@given(NET, QUANTITY, ALLOCATION)
def test_a_budget_is_reachable_down_to_one_unit_of_every_group(
    name: str, quantity: str, allocation: Any
) -> None:
    found = program(name)
    minimum = getattr(found.cost(dict.fromkeys(movable(found), 1)), quantity)
    least = MagnitudePruning(budget=asking(quantity, minimum, allocation))

    assert getattr(found.cost(least.plan(found).widths), quantity) == minimum
    with pytest.raises(BudgetError, match=rf"{quantity}={minimum - 1} is below the minimum"):
        MagnitudePruning(budget=asking(quantity, minimum - 1, "uniform")).plan(found)


@given(NET, st.floats(0.3, 0.9), ALLOCATION)
def test_what_a_budget_leaves_is_less_than_any_unit_costs(
    name: str, share: float, allocation: Any
) -> None:
    found = program(name)
    budget = Budget(flops=share, allocation=allocation, round_to=1)
    try:
        widths = MagnitudePruning(budget=budget).plan(found).widths
    except BudgetError:
        return
    for group, width in widths.items():
        assert found.cost({**widths, group: width + 1}).flops > share * found.cost().flops


@pytest.mark.parametrize("name", ["projected_residual", "grouped_conv", "rotary_grouped_attention"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_predicted_cost_is_the_counted_one(name: str, allocation: Any) -> None:
    found = program(name)
    budget = Budget(flops=0.6, params=0.7, allocation=allocation)
    small = fx.apply(found, MagnitudePruning(budget=budget))

    assert count(small.module) == small.report.params.after <= 0.7 * count(found.module)
    assert small.report.flops.after <= 0.6 * found.report.flops.before


def test_all_of_several_quantities_hold() -> None:
    found = program("projected_residual")
    for flops, params in [(0.3, 0.9), (0.9, 0.3), (0.5, 0.5)]:
        plan = MagnitudePruning(budget=Budget(flops=flops, params=params)).plan(found)
        assert shares(found, plan)["flops"] <= flops
        assert shares(found, plan)["params"] <= params


def test_a_budget_of_one_and_a_ratio_of_zero_change_nothing() -> None:
    found = program("conv_chain")
    for nothing in (MagnitudePruning(ratio=0), MagnitudePruning(budget=Budget(flops=1.0))):
        assert nothing.plan(found).edits == ()


def test_a_global_budget_takes_from_the_groups_that_matter_least() -> None:
    found = blocks()
    one = MagnitudePruning(
        budget=Budget(params=0.8, allocation="global", exclude="blocks.0.2.*", round_to=1),
        normaliser="none",
    )
    widths = {group.name: width for group, width in one.plan(found).widths.items()}

    assert min(widths, key=lambda name: widths[name]) == "blocks.1.0"


# ---- refusals


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MagnitudePruning().plan(program("mlp")), "needs either ratio= .* or budget="),
        (lambda: MagnitudePruning(0.5, Budget(flops=0.5)), "needs either ratio="),
        (lambda: MagnitudePruning(1.0), r"in \[0, 1\) or None, not 1.0"),
        (lambda: RandomPruning(-0.1), r"in \[0, 1\) or None, not -0.1"),
        (lambda: Budget(), "needs a quantity"),
        (lambda: Budget(flops=0), "flops must be .* the share that stays, .* not 0"),
        (lambda: Budget(flops=1.5), "flops must be .* not 1.5"),
        (lambda: Budget(params=True), "params must be .* not True"),
        (lambda: Budget(bytes=float("nan")), "bytes must be .* not nan"),
        (lambda: Budget(flops=0.5, allocation="local"), "'global' or 'exact', not 'local'"),  # type: ignore[arg-type]
        (lambda: Limits(max_ratio=0), "max_ratio"),
        (lambda: Limits(min_units=0), "min_units"),
        (lambda: Limits(round_to="ort-cp"), "did you mean 'ort-cpu'"),
        (lambda: Limits(include=("a:inn",)), "include='a:inn'"),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Any, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        make()


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (RandomPruning(0.5, include="frist.*"), r"'frist.\*'; the nearest are 'first.\*'"),
        (RandomPruning(0.0, exclude="xyz"), "no parameter or buffer is called 'xyz'"),
        (RandomPruning(0.5, include="head.weight:out"), r"frozen: an output of the model"),
        (RandomPruning(0.5, min_units=10), r"second.0 \(has 10 units, min_units=10\)"),
        (RandomPruning(0.05), "ratio=0.05 .* removes no unit of any group"),
        (RandomPruning(0.5, round_to=64), "turn rounding off with round_to=1"),
        (
            MagnitudePruning(budget=Budget(flops=0.01, exclude="first.0.weight:out")),
            r"minimum of 0\.\d+ .* held by first.0 .*excluded by 'first.0.weight:out'",
        ),
        (
            MagnitudePruning(budget=Budget(flops=0.1, max_ratio=0.2, min_units=3)),
            r"and by max_ratio=0.2, min_units=3",
        ),
        (
            MagnitudePruning(budget=Budget(flops=0.5, round_to=2), round_to=4),
            "round_to is 4 in the pass and 2 in its budget",
        ),
    ],
    ids=repr,
)
def test_what_cannot_be_done_is_refused_with_the_reason(one: Any, words: str) -> None:
    with pytest.raises(BudgetError, match=words) as caught:
        one.plan(program("conv_chain"))
    assert isinstance(caught.value, PlanError)


def test_limits_may_stand_in_the_pass_or_in_the_budget() -> None:
    inside = MagnitudePruning(budget=Budget(flops=0.7, round_to=1, exclude="first.*"))
    outside = MagnitudePruning(budget=Budget(flops=0.7), round_to=1, exclude="first.*")
    found = program("conv_chain")
    assert inside.plan(found).widths == outside.plan(found).widths
