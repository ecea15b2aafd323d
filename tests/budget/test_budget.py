"""Budgets hold, limits hold, and what cannot be held is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Budget, Limits
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import MagnitudePruning, RandomPruning
from fxcompress.program import Program
from programs import PRUNABLE, count, program, shares

QUANTITY = st.sampled_from(["flops", "params", "macs", "bytes"])
ALLOCATION = st.sampled_from(["uniform", "global"])
NET = st.sampled_from(PRUNABLE)


def movable(found: Program) -> list[ChannelGroup]:
    return [group for group in found.groups if not group.frozen and group.units > 1]


def asking(quantity: str, value: float, allocation: Any, round_to: Any = "auto") -> Budget:
    options: dict[str, Any] = {quantity: value, "allocation": allocation, "round_to": round_to}
    return Budget(**options)


class Blocks(nn.Module):
    """Three blocks that look alike, then one of another size."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (16, 16, 16, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def blocks() -> Program:
    net = Blocks()
    with torch.no_grad():  # the second block matters least
        net.blocks[1][0].weight.mul_(0.3)  # type: ignore[index]
    return fx.compile(net, (torch.randn(2, 6),))


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


# ---- limits


@given(NET, st.floats(0.05, 0.95), st.floats(0.2, 1), st.integers(1, 3), st.data())
def test_no_group_loses_more_than_its_limits_say(
    name: str, ratio: float, most: float, least: int, data: st.DataObject
) -> None:
    found = program(name)
    round_to: Any = data.draw(st.sampled_from(["auto", 1, 2]))
    one = RandomPruning(ratio=ratio, max_ratio=most, min_units=least, round_to=round_to)
    try:
        widths = one.plan(found).widths
    except BudgetError:
        return
    for group, width in widths.items():
        assert width >= max(1, least)
        assert group.units - width <= most * group.units + 1e-6


@given(NET, st.floats(0.05, 0.95))
def test_an_unrounded_ratio_removes_that_share_rounded_down(name: str, ratio: float) -> None:
    found = program(name)
    try:
        widths = RandomPruning(ratio=ratio, round_to=1).plan(found).widths
    except BudgetError:
        widths = {}
    for group in movable(found):
        gone = group.units - widths.get(group, group.units)
        assert gone <= ratio * group.units + 1e-6
        assert gone > ratio * group.units - 1 - 1e-6 or gone == group.units - 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "first.*"}, {"first.0"}),
        ({"include": ("second.0.weight:in",)}, {"first.0"}),
        ({"include": ("second.0.weight:out",)}, {"second.0"}),
        ({"include": ("second.0.weight",)}, {"first.0", "second.0"}),
        ({"exclude": "head.weight:in"}, {"first.0"}),
        ({"exclude": ("first.*", "nothing*", "head.bias")[:1]}, {"second.0"}),
        ({"include": "*", "exclude": "*.1.running_mean", "min_units": 1}, None),
        ({"min_units": 6}, {"second.0"}),
    ],
)
def test_include_and_exclude_choose_groups(
    options: dict[str, Any], expected: set[str] | None
) -> None:
    one = RandomPruning(ratio=0.5, **options)
    if expected is None:
        with pytest.raises(BudgetError, match="no group may lose a unit"):
            one.plan(program("conv_chain"))
    else:
        changed = one.plan(program("conv_chain")).widths
        assert {group.name for group in changed} == expected


def test_a_tied_parameter_answers_to_all_its_names() -> None:
    found = program("tied_language_model")
    names = [RandomPruning(ratio=0.5, exclude=n).plan(found).widths for n in ("embed.*", "head.*")]
    assert names[0].keys() == names[1].keys() == {found.group("up")}


def test_exact_only_leaves_groups_under_a_norm_alone() -> None:
    found = program("swiglu")
    changed = RandomPruning(ratio=0.5, exact_only=True).plan(found).widths
    assert changed
    assert all(group.exact for group in changed)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("round_to", [1, "auto"])
def test_layers_that_look_alike_keep_the_same_width(allocation: Any, round_to: Any) -> None:
    budget = Budget(
        params=0.55, allocation=allocation, round_to=round_to, uniform_across_layers=True
    )
    found = blocks()
    widths = MagnitudePruning(budget=budget, normaliser="none").plan(found).widths
    alike = [widths[found.group(f"blocks.{n}.0")] for n in range(3)]
    assert len(set(alike)) == 1


def test_an_excluded_layer_keeps_those_whole_that_look_like_it() -> None:
    one = RandomPruning(ratio=0.5, exclude="blocks.1.0.weight:out", uniform_across_layers=True)
    plan = one.plan(blocks())
    assert {group.name for group in plan.widths} == {"blocks.3.0"}
    assert "to look like blocks.1.0" in plan.notes[0]


def test_the_notes_say_what_rounding_did() -> None:
    notes = MagnitudePruning(ratio=0.5).plan(program("convnext_block")).notes
    assert notes == ("round_to='auto': multiples of 4 in 1 groups, 1 not rounded",)


def test_a_budget_that_only_unrounded_widths_meet_is_met_unrounded() -> None:
    found = program("conv_chain")
    minimum = found.cost(dict.fromkeys(movable(found), 1)).params
    plan = MagnitudePruning(budget=Budget(params=minimum, round_to="auto")).plan(found)
    assert set(plan.widths.values()) == {1}


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
