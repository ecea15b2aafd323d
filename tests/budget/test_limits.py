"""Limits of groups hold, whatever the budget."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgeted import NET, blocks, movable
from fxcompress.budget import Budget
from fxcompress.errors import BudgetError
from fxcompress.passes import MagnitudePruning, RandomPruning
from programs import program


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
    assert notes == ("round_to='auto': multiples of 4 in 1 group, 1 not rounded",)


def test_a_budget_that_only_unrounded_widths_meet_is_met_unrounded() -> None:
    found = program("conv_chain")
    minimum = found.cost(dict.fromkeys(movable(found), 1)).params
    plan = MagnitudePruning(budget=Budget(params=minimum, round_to="auto")).plan(found)
    assert set(plan.widths.values()) == {1}
