"""Statistics of two parts of the data merge into that of the whole."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fxcompress as fx
import models
from fxcompress.errors import PlanError
from fxcompress.layers.weights import consumers
from fxcompress.program import Program
from fxcompress.stats import (
    Cross,
    GradientSums,
    Gram,
    Powers,
    Range,
    Read,
    Statistic,
    UnitMoments,
    UnitPairs,
    Wanted,
    collect,
)

# float64, the same sums in another order
close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def program() -> Program:
    model, args, kwargs = models.build("conv_chain")
    return fx.compile(model, args, kwargs, task=[models.rebatch(args, 7)[0]])


PROGRAM = program()
GROUP = next(g for g in PROGRAM.groups if not g.frozen and consumers(PROGRAM, g))
READ = Read(consumers(PROGRAM, GROUP)[0].value)


def value(whole: Tensor) -> Tensor:
    """What a node may give, of the shape that the analysis knows."""
    shape = [expr.size for expr in PROGRAM.analysis.coupling.axes[READ.value]]
    numbers = torch.arange(whole.shape[-1] * shape[1] * shape[2] * shape[3]).sin()
    return numbers.reshape(-1, *shape[1:]).double() * whole[0, 0]


KINDS: dict[str, tuple[Callable[[], Statistic[Any]], Callable[[Tensor], Any]]] = {
    "gram": (Gram, lambda x: x),
    "powers": (Powers, lambda x: x),
    "range": (Range, lambda x: x),
    "cross": (Cross, lambda x: (x, 2 - x)),
    "gradients": (
        lambda: GradientSums({"a": torch.zeros(3).double()}, True),
        lambda x: {"a": x.sum(1)},
    ),
    "units": (lambda: UnitMoments(PROGRAM, GROUP, READ, "units", "a test"), value),
    "pairs": (lambda: UnitPairs(PROGRAM, GROUP, READ, "units"), lambda x: (value(x), -value(x))),
}


def drawn(count: int, whole: bool = False) -> Tensor:
    batch = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (8 * batch).round() if whole else batch


def gathered(kind: str, batches: list[Tensor]) -> Statistic[Any]:
    make, shown = KINDS[kind]
    one = make()
    for batch in batches:
        one.update(shown(batch))
    return one


def same(first: Statistic[Any], second: Statistic[Any], compare: Any = close) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    for name, each in one.items():
        compare(each, other[name])


def equal(first: Tensor, second: Tensor) -> None:
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(1, 9), min_size=2, max_size=4), at=st.integers(0, 3))
def test_two_parts_merge_into_the_whole(kind: str, cuts: list[int], at: int) -> None:
    batches = list(drawn(sum(cuts)).split(cuts, 1))
    first, second = gathered(kind, batches[:at]), gathered(kind, batches[at:])
    before = copy.deepcopy(second.state_dict())
    first.merge(second)
    same(first, gathered(kind, batches))
    for name, each in second.state_dict().items():
        equal(each, before[name])


@pytest.mark.parametrize("kind", ["gram", "range", "cross"])
def test_where_sums_are_exact_so_is_the_merged(kind: str) -> None:
    """Small integers: no sum is rounded."""
    batches = list(drawn(12, whole=True).split([5, 7], 1))
    first = gathered(kind, batches[:1])
    first.merge(gathered(kind, batches[1:]))
    same(first, gathered(kind, [torch.cat(batches, 1)]), equal)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 2])
def test_a_state_loaded_is_the_state_stored_and_goes_on_alone(kind: str, count: int) -> None:
    batches = list(drawn(9).split(3, 1))
    first, second = gathered(kind, batches[:count]), gathered(kind, batches[2:])
    second.load_state_dict(first.state_dict())
    same(first, second, equal)
    stored = copy.deepcopy(first.state_dict())
    second.update(KINDS[kind][1](batches[2]))
    for name, each in first.state_dict().items():
        equal(each, stored[name])


def test_a_state_of_other_parts_is_refused() -> None:
    state = gathered("units", [drawn(3)]).state_dict()
    with pytest.raises(PlanError, match=r"state of a statistic has gram, inputs; .* of inputs"):
        UnitMoments(PROGRAM, GROUP, READ, "none", "a test").load_state_dict(state)


def share(number: int, send: Any) -> None:
    """One process's share of the data."""
    own = Gram()
    collect(with_data(number, number + 1), [Wanted("linear", Rows(own))])
    send.send({name: each.tolist() for name, each in own.state_dict().items()})


class Rows(Gram):
    """Takes samples on the first axis."""

    def __init__(self, inner: Gram) -> None:
        super().__init__()
        self.inner = inner

    def update(self, batch: Tensor, weight: float = 1.0) -> None:
        self.inner.update(batch.mT, weight)


def with_data(start: int, stop: int) -> Program:
    model, args, kwargs = models.build("conv_chain")
    batches = list(models.rebatch(args, 8)[0].split(4))
    return fx.compile(model, args, kwargs, task=batches[start:stop])


def test_shares_of_two_processes_merge_into_that_of_one() -> None:
    spawned = multiprocessing.get_context("fork")
    merged = Gram()
    for number in range(2):
        receive, send = spawned.Pipe(duplex=False)
        one = spawned.Process(target=share, args=(number, send))
        one.start()
        state = {
            name: torch.tensor(each, dtype=torch.float64) for name, each in receive.recv().items()
        }
        one.join()
        loaded = Gram()
        loaded.load_state_dict(state)
        merged.merge(loaded)
    whole = Gram()
    collect(with_data(0, 2), [Wanted("linear", Rows(whole))])
    equal(merged.total, whole.total)
    assert merged.count == whole.count
