"""A quantity is one registration: budgets of every kind, costs and reports know it by its name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.cost import CostModel
from fxcompress.analysis.quantities import (
    PerIndex,
    Quantity,
    Table,
    Term,
    quantities,
    register,
    unregister,
)
from fxcompress.axes.expressions import Factor
from fxcompress.budget.exact import Choice, most_score
from fxcompress.budget.meter import Meter
from fxcompress.budget.polynomial import Form, evaluated, form_of
from fxcompress.errors import BudgetError, FxCompressError
from fxcompress.passes import MagnitudePruning, progressive
from fxcompress.program import Program
from fxcompress.report import Report
from programs import PRUNABLE, program

BLOCK = 4


def blocked(model: CostModel) -> Iterator[Term]:
    """What a runtime multiplies that pads both axes of every matrix to blocks: a table over the two
    widths, with steps of a block.
    """
    for one in model.stored:
        if len(one.axes) == 2:
            counts = [-(-axis.size // BLOCK) for axis in one.axes]
            steps = tuple(tuple(BLOCK * n for n in range(1, count + 1)) for count in counts)
            rows, columns = (np.arange(1, count + 1) for count in counts)
            yield Table(one.axes, steps, np.outer(rows, columns) + 1)  # and one for the call


@pytest.fixture(autouse=True, scope="module")
def blocks() -> Iterator[Quantity]:
    yield register(Quantity("blocks", "blocks of weights", blocked))
    unregister("blocks")


def counted(found: Program) -> int:
    """The blocks of a program, from its parameters."""
    shapes = [p.shape for p in found.module.parameters() if p.ndim == 2]
    return sum(-(-rows // BLOCK) * -(-columns // BLOCK) + 1 for rows, columns in shapes)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = (6, 14, 11, 9, 3)
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def net() -> Program:
    torch.manual_seed(0)
    return fx.compile(Net(), (torch.randn(2, 6),))


@pytest.mark.parametrize("allocation", ["uniform", "global", "exact"])
@pytest.mark.parametrize("round_to", ["auto", 1])
def test_a_budget_bounds_it(allocation: Any, round_to: Any) -> None:
    dense = net()
    for share in (0.4, 0.7):
        budget = fx.Budget(quantities={"blocks": share}, allocation=allocation, round_to=round_to)
        small = fx.apply(dense, MagnitudePruning(budget=budget))

        row = small.report.sizes["blocks"]
        assert row.after == small.cost()["blocks"] == counted(small) <= share * row.before
        assert row.before == counted(dense)
        assert f"blocks {row.ratio:.4f} of the model's" in small.report.passes[-1].notes[-1]
        assert "blocks of weights" in str(small.report)
        assert Report.from_dict(small.report.to_dict()) == small.report


def test_an_exact_allocation_is_the_best_of_all_widths() -> None:
    dense = net()
    options: dict[str, Any] = {"quantities": {"blocks": 0.6}, "params": 0.8, "round_to": 1}
    budget = fx.Budget(allocation="exact", **options)
    plan = MagnitudePruning(budget=budget).plan(dense)
    assert plan.curves is not None
    lines = {name: scores for name, (_, scores) in plan.curves.lines.items()}
    groups = [dense.group(name) for name in lines]

    def score(widths: Iterable[int]) -> float:
        return sum(own[width] for own, width in zip(lines.values(), widths, strict=True))

    def fits(widths: Iterable[int]) -> bool:
        cost = dense.cost(dict(zip(groups, widths, strict=True)))
        return all(cost.share(dense.cost())[name] <= share for name, share in budget.asked.items())

    every = itertools.product(*(range(1, group.units + 1) for group in groups))
    best = max(score(widths) for widths in every if fits(widths))
    kept = [plan.widths.get(group, group.units) for group in groups]
    assert fits(kept)
    # the solver's own tolerance of the objective is 1e-6 of the largest score
    assert score(kept) == pytest.approx(best, rel=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_a_table_over_several_widths_is_exact_in_the_integer_program(seed: int) -> None:
    draw = np.random.default_rng(seed)
    factors = [Factor(n, 4, "f") for n in range(3)]
    table = Table(tuple(factors), ((1, 2, 4),) * 3, draw.integers(0, 50, (3, 3, 3)))
    quantity = Quantity("drawn", "drawn", lambda _: [table, PerIndex(3, (factors[0],))])
    form = form_of(quantity, CostModel((), ()), {f: n for n, f in enumerate(factors)})
    choices = [Choice((1, 2, 3, 4), tuple(np.cumsum(draw.random(4)))) for _ in factors]
    every = list(itertools.product(range(1, 5), repeat=3))
    most = int(np.median([form.value(widths) for widths in every]))

    def fits(widths: tuple[int, ...]) -> bool:
        return form.value(widths) <= most

    def score(widths: tuple[int, ...]) -> float:
        return sum(own.values[width - 1] for own, width in zip(choices, widths, strict=True))

    found = most_score(choices, [(form, most)], fits)
    # the solver's own tolerance of the objective is 1e-6 of the largest score
    assert score(found) == pytest.approx(max(map(score, filter(fits, every))), rel=1e-5)


@pytest.mark.parametrize("name", PRUNABLE)
def test_forms_give_what_the_cost_is_also_one_width_at_a_time(name: str) -> None:
    found = program(name)
    groups = [group for group in found.groups if not group.frozen]
    numbers = {group.factor: n for n, group in enumerate(groups)}
    generator = torch.Generator().manual_seed(0)
    for quantity in quantities().values():
        meter = Meter(form_of(quantity, found.cost, numbers), [group.units for group in groups])
        for _ in range(8):
            number = int(torch.randint(len(groups), (), generator=generator))
            width = int(torch.randint(1, groups[number].units + 1, (), generator=generator))
            ahead = meter.after(number, width)
            meter.move(number, width)
            cost = found.cost(dict(zip(groups, meter.widths, strict=True)))
            assert ahead == meter.total == meter.form.value(meter.widths)
            assert meter.total // quantity.unit == cost[quantity.name]


def test_what_cannot_be_reached_is_told_in_the_same_words() -> None:
    with pytest.raises(BudgetError, match=r"quantities=\{'blocks': 0.01\} is below the minimum"):
        MagnitudePruning(budget=fx.Budget(quantities={"blocks": 0.01})).plan(net())


def test_recipes_hold_it() -> None:
    one = MagnitudePruning(budget=fx.Budget(quantities={"blocks": 0.5}, flops=0.5))
    namespace = {**vars(fx), **vars(fx.passes)}
    assert eval(repr(one), namespace) == one
    assert hash(eval(repr(one), namespace)) == hash(one)
    budgets = [each.budget for each in progressive(one, 2)]
    assert [b.quantities for b in budgets if b] == [{"blocks": 0.75}, {"blocks": 0.666666666666}]
    assert repr(fx.Budget(flops=0.5)) == "Budget(flops=0.5)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantities": {"block": 0.5}}, "no quantity is called 'block'.*did you mean 'blocks'"),
        ({"quantities": {"flops": 0.5}}, "write flops= for 'flops'"),
        ({"quantities": {"blocks": 1.5}}, "the share that stays"),
        ({}, "needs a quantity"),
    ],
)
def test_what_is_no_quantity_is_refused(options: Any, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        fx.Budget(**options)


def test_a_table_that_does_not_fit_its_axes_is_refused() -> None:
    axis = Factor(0, 4, "f")
    with pytest.raises(BudgetError, match="give one value for each combination"):
        Table((axis,), ((2, 4),), np.arange(3))
    for steps in ((2, 3), (4, 2), (2, 2, 4)):
        with pytest.raises(BudgetError, match="must ascend and reach 4"):
            Table((axis,), (steps,), np.arange(len(steps)))


def test_a_name_that_a_report_has_already_is_refused() -> None:
    register(Quantity("groups", "groups", blocked))
    try:
        with pytest.raises(FxCompressError, match="another part of a report"):
            net()
    finally:
        unregister("groups")


def test_a_form_without_widths_is_a_number() -> None:
    table = Table((Factor(0, 4, "f"),), ((4,),), np.array([7]))
    form = form_of(Quantity("one", "one", lambda _: [table]), CostModel((), ()), {})
    assert (form.value(()), form.tables) == (7, ())
    assert evaluated(Form(form.polynomial).polynomial, ()) == 7
