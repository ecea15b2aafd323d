"""Passes that remove units: what they keep, and what their repr says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fxcompress as fx
from fxcompress import passes
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Budget
from fxcompress.edit.plan import Edit, Project, Replace
from fxcompress.errors import PlanError
from fxcompress.passes import (
    Criterion,
    MagnitudePruning,
    RandomPruning,
    Reconstruction,
    StructuredPass,
    Uniform,
)
from fxcompress.passes.structured.planning import best
from fxcompress.program import Program
from models import build
from planned import kept
from programs import PRUNABLE, program

# ---- what is kept


@given(
    st.sampled_from(PRUNABLE),
    st.floats(0.1, 0.9),
    st.sampled_from([MagnitudePruning, RandomPruning]),
)
def test_kept_units_ascend_and_every_cell_keeps_as_many(name: str, ratio: float, one: Any) -> None:
    try:
        plan = one(ratio=ratio).plan(program(name))
    except PlanError:
        return
    for edit in plan.edits:
        assert isinstance(edit, Project)
        group, index = edit.group, edit.encode
        shape = (edit.width,) if group.cells == 1 else (group.cells, edit.width)
        assert index.shape == shape
        rows = index.reshape(group.cells, -1)
        assert bool((rows[:, 1:] > rows[:, :-1]).all())
        assert 0 <= int(rows.min()) <= int(rows.max()) < group.units
        assert 1 <= edit.width < group.units


@given(
    st.integers(1, 4), st.integers(1, 12), st.data(), st.sampled_from([torch.float32, torch.int64])
)
def test_the_best_units_of_each_cell_stay(
    cells: int, units: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    values = data.draw(st.lists(st.integers(0, 5), min_size=cells * units, max_size=cells * units))
    width = data.draw(st.integers(1, units))
    score = torch.tensor(values, dtype=dtype).reshape(cells, units)
    for row, index in zip(score.tolist(), best(score, width).reshape(cells, -1), strict=True):
        order = sorted(range(units), key=lambda unit: (-row[unit], unit))
        assert index.tolist() == sorted(order[:width])


@pytest.mark.parametrize("name", PRUNABLE)
def test_what_is_left_is_what_masking_leaves(name: str) -> None:
    small = fx.apply(program(name), MagnitudePruning(ratio=0.4, round_to=1))
    check = small.report.checks[-1]
    assert check.kind == "zero-masked"
    assert check.ok


@given(st.sampled_from(PRUNABLE), st.integers(0, 2**40))
def test_the_same_seed_keeps_the_same_units(name: str, seed: int) -> None:
    found = program(name)
    first = kept(RandomPruning(ratio=0.5, seed=seed, round_to=1).plan(found))
    again = kept(RandomPruning(ratio=0.5, seed=seed, round_to=1).plan(found))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[group], again[group]) for group in first)


def test_what_one_group_draws_does_not_hang_on_the_others() -> None:
    found = program("projected_residual")
    all_of_them = kept(RandomPruning(ratio=0.5, seed=3).plan(found))
    alone = kept(RandomPruning(ratio=0.5, seed=3, include="inner.0.weight:out").plan(found))
    assert list(alone) == ["inner.0"]
    assert torch.equal(alone["inner.0"], all_of_them["inner.0"])


def test_without_a_seed_the_programs_own_is_taken() -> None:
    model, args, kwargs = build("conv_chain")
    seeded = fx.compile(model, args, kwargs, seed=7)
    by_program = kept(RandomPruning(ratio=0.5).plan(seeded))
    by_pass = kept(RandomPruning(ratio=0.5, seed=7).plan(program("conv_chain")))
    other = kept(RandomPruning(ratio=0.5, seed=8).plan(seeded))
    assert all(torch.equal(by_program[group], by_pass[group]) for group in by_pass)
    assert any(not torch.equal(by_program[group], other[group]) for group in other)


# ---- criteria and reconstructions of others


@dataclass(frozen=True)
class ByPosition(Criterion):
    """The later a unit, the better."""

    shape: tuple[int, ...] = ()

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        shape = self.shape or (group.cells, group.units)
        return torch.arange(group.units).expand(shape)


@dataclass(frozen=True)
class Doubled(Reconstruction):
    """Producers twice as large, consumers half."""

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        select = torch.eye(group.units, dtype=torch.float64)[kept]
        return (Project(group, 2 * select, select.mT / 2),)


def test_any_criterion_and_reconstruction_will_do() -> None:
    found = program("mlp")
    one = StructuredPass(ratio=0.5, criterion=ByPosition(), reconstruction=Doubled(), round_to=1)
    small = fx.apply(found, one)
    last = fx.apply(found, StructuredPass(ratio=0.5, criterion=ByPosition(), round_to=1))
    parameter = dict(small.module.named_parameters())["first.weight"]
    torch.testing.assert_close(parameter, 2 * dict(last.module.named_parameters())["first.weight"])
    assert kept(StructuredPass(ratio=0.5, criterion=ByPosition()).plan(found))[
        "first"
    ].tolist() == [
        3,
        4,
        5,
        6,
    ]


@dataclass(frozen=True)
class Incremented(Reconstruction):
    """Adds one to every weight that holds the units, as a value that is replaced."""

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        values = program.module.state_dict()
        names = {site.parameter for site in group.sites}
        return (*(Replace(name, values[name] + 1) for name in sorted(names)), Project(group, kept))


def test_values_are_replaced_before_units_are_selected_one_group_after_another() -> None:
    found = program("mlp")
    one = StructuredPass(
        ratio=0.5, criterion=ByPosition(), reconstruction=Incremented(), round_to=1
    )
    small = fx.apply(found, one)
    assert small.report.checks[-1].kind == "zero-masked"
    meetings = Counter(site.parameter for g in found.groups if not g.frozen for site in g.sites)
    assert max(meetings.values()) == 2, "no layer belongs to two groups"
    for name, value in (
        fx.apply(found, StructuredPass(ratio=0.5, criterion=ByPosition(), round_to=1))
        .module.state_dict()
        .items()
    ):
        torch.testing.assert_close(small.module.state_dict()[name], value + meetings[name])


class Counting(Criterion):
    """Scores by position, and counts how often it is prepared."""

    def __init__(self) -> None:
        self.prepared: list[int] = []

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> ByPosition:
        self.prepared.append(len(groups))
        return ByPosition()

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        raise AssertionError("what was prepared scores")


def test_a_criterion_is_prepared_once_for_all_groups() -> None:
    found, criterion = program("mlp"), Counting()
    StructuredPass(ratio=0.5, criterion=criterion).plan(found)
    assert criterion.prepared == [sum(not group.frozen for group in found.groups)]


# ---- recipes and refusals


@pytest.mark.parametrize(
    "one",
    [
        MagnitudePruning(ratio=0.5),
        MagnitudePruning(0.25, p=1, aggregate="max", include="layer1.*", round_to=1),
        MagnitudePruning(budget=Budget(flops=0.5, allocation="global", exclude=("a", "b:in"))),
        RandomPruning(ratio=0.5, seed=0, exact_only=True),
        StructuredPass(criterion=Uniform(seed=3), ratio=0.1, max_ratio=0.5),
        passes.FoldBatchNorm(),
        passes.NMSparsity(n=1, m=2, trainable=True),
    ],
    ids=repr,
)
def test_the_repr_of_a_pass_makes_it_again(one: object) -> None:
    names = {**vars(passes), "Budget": Budget}
    assert eval(repr(one), names) == one


def test_a_repr_says_only_what_was_asked() -> None:
    assert repr(RandomPruning(ratio=0.5, seed=0)) == "RandomPruning(ratio=0.5, seed=0)"
    assert repr(MagnitudePruning(budget=Budget(flops=0.5))) == (
        "MagnitudePruning(budget=Budget(flops=0.5))"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_the_parameter(value: float) -> None:
    model, args, kwargs = build("conv_chain")
    found = fx.compile(model, args, kwargs)
    with torch.no_grad():
        found.module.get_parameter("second.0.weight")[3, 0, 0, 0] = value
    with pytest.raises(PlanError, match=r"second\.0\.weight has entries that are not finite"):
        MagnitudePruning(ratio=0.5).plan(found)


def test_scores_of_another_shape_are_refused() -> None:
    one = StructuredPass(ratio=0.5, criterion=ByPosition((1, 2, 7)), include="first.*")
    with pytest.raises(PlanError, match=r"shape \(1, 2, 7\); it must be \(1, 7\)"):
        one.plan(program("mlp"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": 3}, "p must be 1 or 2, not 3"),
        ({"aggregate": "median"}, "aggregate must be .* not 'median'"),
        ({"normaliser": "median"}, "normaliser must be .* not 'median'"),
        ({"roles": ("produces",)}, r"roles\[0\] must be .* not 'produces'; did you mean 'produce'"),
    ],
)
def test_options_of_magnitude_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        MagnitudePruning(ratio=0.5, **options)
