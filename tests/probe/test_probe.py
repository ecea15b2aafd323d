"""The probe: what it finds in operators nobody wrote a rule for, and what it must refuse."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.couple import couple
from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.transforms import Choice, Choices
from fxcompress.graph.captured import CapturedModule
from fxcompress.probe.relation import _telling
from op_law import calls, check, free
from probed import (
    CALLED,
    Net,
    blocked,
    blurred,
    broken,
    compiled,
    constant,
    counted,
    cube,
    dense,
    divided,
    flipped,
    gated,
    halves,
    hidden,
    mixed,
    noisy,
    numbered,
    shifted,
    tagged,
)
from selection import RandomSelection, zero_masked
from torch_samples import graph, is_known, samples

ROUNDING = 1e-10  # float64: sums of a few hundred terms in another order


@pytest.mark.parametrize(
    ("op", "scaled"), [(cube, False), (shifted, False), (blurred, False), (gated, True)], ids=str
)
def test_channels_pass_through_what_acts_on_each_alone(
    op: Callable[..., Tensor], scaled: bool
) -> None:
    model = Net(op, scaled=scaled)
    program = compiled(model)
    assert hidden(program).frozen is None
    assert ("scale" in {site.parameter for site in hidden(program).sites}) is scaled
    (probed,) = program.report.probed
    assert probed.startswith("probetest::")
    assert probed in str(program.report)
    assert program.report.unknown == {}

    small = fx.apply(program, RandomSelection(exact_only=True))
    assert small.report.params.after < small.report.params.before
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small(x), zero_masked(model, small)(x), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (mixed, "this axis does not pass unit by unit"),
        (divided, "this axis does not pass unit by unit"),
        (blocked, "this axis does not pass unit by unit"),
        (flipped, "this axis does not pass unit by unit"),
        (numbered, "this axis does not pass unit by unit"),
        (constant, "no axis of it passes through"),
        (noisy, "two runs on the same operands differ"),
        (tagged, "it draws random numbers"),
        (counted, "it has side effects"),
        (broken, "only positive values"),
    ],
    ids=str,
)
def test_what_it_cannot_prove_stays_frozen_and_says_why(
    op: Callable[..., Tensor], reason: str
) -> None:
    program = compiled(Net(op))
    assert reason in str(hidden(program).frozen)


def test_it_is_off_unless_asked_for() -> None:
    program = compiled(Net(cube), probe=False)
    assert hidden(program).frozen is not None
    assert program.report.probed == {}
    assert list(program.report.unknown) == ["probetest::cube"]


def test_an_op_with_side_effects_never_runs() -> None:
    model = Net(counted)
    del CALLED[:]
    compiled(model)
    assert CALLED == []
    assert int(model.count) == 0


def test_the_generator_of_the_user_is_left_alone() -> None:
    model = Net(noisy).double()
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(3)
    fx.compile(model, (x,), probe=True)
    assert torch.equal(torch.get_rng_state(), expected)


class _Several(nn.Module):
    """The channels come out of the operator twice: as maps, and as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 9, 3)
        self.head = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        maps, peaks = halves(self.first(x))
        return self.second(maps).mean((2, 3)) + self.head(peaks)  # type: ignore[no-any-return]


def test_every_result_of_an_operator_follows() -> None:
    program = compiled(_Several())
    sites = {site.parameter for site in hidden(program).sites}
    assert {"first.weight", "second.weight", "head.weight"} <= sites
    small = fx.apply(program, RandomSelection())
    assert small.report.verification is not None
    assert small.report.verification.ok
    assert small.module.get_parameter("head.weight").shape == (9, 6)


class _Produced(nn.Module):
    """A linear layer that only an operator knows to be one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 8))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(dense(x, self.weight).relu())  # type: ignore[no-any-return]


def test_a_parameter_that_alone_makes_the_units_produces_them() -> None:
    model = _Produced().double()
    x = torch.randn(4, 8, dtype=torch.float64)
    program = fx.compile(model, (x,), probe=True)
    (group,) = (group for group in program.groups if group.units == 12)
    assert group.frozen is None
    assert {(site.parameter, site.role) for site in group.sites} >= {("weight", "produce")}
    small = fx.apply(program, RandomSelection())
    torch.testing.assert_close(small(x), zero_masked(model, small)(x), rtol=0, atol=ROUNDING)


class _Summed(nn.Module):
    """An operator on the channels, then a sum over them beside a layer that reads them."""

    def __init__(self, op: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.op, self.head = nn.Linear(5, 8), op, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(self.layer(x))
        return self.head(x) + x.sum(-1, keepdim=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("op", "exact"), [(cube, True), (shifted, False)], ids=str)
def test_what_becomes_of_zeros_is_found_too(op: Callable[..., Tensor], exact: bool) -> None:
    """x³ - x keeps zeros, so that masking is cutting; cos does not."""
    x = torch.randn(4, 5, dtype=torch.float64)
    program = fx.compile(_Summed(op).double(), (x,), probe=True)
    (group,) = (group for group in program.groups if group.units == 8 and not group.frozen)
    assert group.exact is exact
    assert any("probetest" in words for words in group.nonlinearities)


def test_what_is_found_is_saved_with_the_program(tmp_path: object) -> None:
    program = fx.apply(compiled(Net(cube)), RandomSelection())
    program.save(f"{tmp_path}/p.fxc")
    again = fx.load(f"{tmp_path}/p.fxc", allow=("probetest",))
    assert again.report.probed == program.report.probed
    assert hidden(again).frozen is None


@pytest.mark.parametrize("size", [2, 3, 8, 21])
def test_perturbed_sets_tell_every_pair_of_slices_apart(size: int) -> None:
    sets = list(_telling(size))
    assert len(sets) == 2 * (size - 1).bit_length()
    for i in range(size):
        for k in range(size):
            assert i == k or any(one[i] and not one[k] for one in sets)


class _Nested(nn.Module):
    """An operator of torch that yields a list beside a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        counts, edges = torch.histogramdd(self.layer(x), [2, 2, 2])
        return counts, *edges


@pytest.mark.parametrize("probe", [False, True])
def test_results_within_results_freeze(probe: bool) -> None:
    program = fx.compile(_Nested(), (torch.randn(5, 4),), probe=probe)
    assert "aten::histogramdd" in program.report.unknown
    assert all(group.frozen for group in program.groups)


@pytest.mark.slow
def test_what_it_finds_in_torchs_own_operators_obeys_the_law_of_rules() -> None:
    """Over PyTorch's samples, for every operator that has no rule."""
    chance, failed, probed = random.Random(0), list[str](), set[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for info, module in _ruleless():
            coupling = couple(module, probe=True)
            probed |= set(coupling.probed)
            for _ in range(2 if coupling.probed else 0):
                try:
                    check(module, coupling, _random_cut(coupling, chance))
                except Exception as error:
                    failed.append(f"{info.name}: {error}")
    assert failed == []
    assert len(probed) > 60


def _ruleless() -> Iterator[tuple[Any, CapturedModule]]:
    from torch.testing._internal.common_methods_invocations import op_db

    for info in op_db:
        for sample in islice(samples(info), 3):
            module = graph(info, sample)
            nodes = calls(module) if module is not None else []
            if module is None or len(nodes) != 1 or is_known(nodes[0]):
                continue
            yield info, module


def _random_cut(coupling: Coupling, chance: random.Random) -> Choices:
    chosen = [factor for factor in free(coupling) if chance.random() < 0.7]
    kept = {f: chance.sample(range(f.size), chance.randint(1, f.size)) for f in chosen}
    return {f: Choice(torch.tensor(sorted(index))) for f, index in kept.items()}
