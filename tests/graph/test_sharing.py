"""Sharing memory until one writes: neither side sees what is done to the other."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.capture import capture
from fxcompress.edit.plan import Plan
from fxcompress.graph.sharing import shared, unshare
from fxcompress.passes import MagnitudePruning
from fxcompress.program import Program

is_shared = torch._C._is_cow_tensor  # type: ignore[attr-defined]
address = torch._C._data_address  # type: ignore[attr-defined]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * 4 * 4, 5)).eval()


IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def trained(module: nn.Module) -> None:
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(IMAGES).square().sum().backward()
    optimizer.step()


def loaded(module: nn.Module) -> None:
    module.load_state_dict({n: torch.ones_like(v) for n, v in module.state_dict().items()})


def filled(module: nn.Module) -> None:
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.view(-1)[:1].fill_(3)


def through_numpy(module: nn.Module) -> None:
    for value in module.parameters():
        value.detach().numpy()[...] = 2


WRITES: tuple[Callable[[nn.Module], None], ...] = (trained, loaded, filled, through_numpy)


@pytest.mark.parametrize("write", WRITES)
def test_a_capture_shares_with_the_model_until_either_is_written_to(
    write: Callable[[nn.Module], None],
) -> None:
    for first in (True, False):
        model = net()
        captured = capture(model, (IMAGES,)).module
        pairs = zip(model.parameters(), captured.parameters(), strict=True)
        assert all(address(a) == address(b) for a, b in pairs)
        before = state(model)
        written, other = (model, captured) if first else (captured, model)
        write(written)
        assert same(state(other), before)
        assert not same(state(written), before)


@pytest.mark.parametrize("passes", [(), (MagnitudePruning(ratio=0.5),)])
@pytest.mark.parametrize("write", WRITES)
def test_what_compile_gives_and_the_model_are_apart(
    passes: tuple[Any, ...], write: Callable[[nn.Module], None]
) -> None:
    model = net()
    places = {name: address(value) for name, value in model.state_dict().items()}
    before = state(model)
    small = fx.compile(model, (IMAGES,), passes=passes).module
    for module in (model, small):
        assert not any(map(is_shared, (*module.parameters(), *module.buffers())))
    assert {name: address(value) for name, value in model.state_dict().items()} == places
    kept = state(small)
    write(model)
    assert same(state(small), kept)
    model.load_state_dict(before)
    write(small)
    assert same(state(model), before)


@dataclass(frozen=True)
class Writing:
    """A pass that does what a pass must not: it writes to its program."""

    seen: list[Program] = field(default_factory=list, compare=False)

    def plan(self, program: Program) -> Plan:
        filled(program.module)
        self.seen.append(program)
        return Plan(())


def test_no_pass_can_write_to_the_model() -> None:
    model = net()
    before = state(model)
    fx.compile(model, (IMAGES,), passes=[Writing()], verify=False)
    assert same(state(model), before)


def test_a_program_that_a_pass_has_kept_stays_as_it_was() -> None:
    @dataclass(frozen=True)
    class Keeping:
        seen: list[Program] = field(default_factory=list, compare=False)

        def plan(self, program: Program) -> Plan:
            self.seen.append(program)
            return Plan(())

    model, one = net(), Keeping()
    before = state(model)
    fx.compile(model, (IMAGES,), passes=[one])
    trained(model)
    assert same(state(one.seen[0].module), before)


def test_memory_that_is_not_torchs_own_or_is_a_part_is_copied(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save(torch.ones(4), tmp_path / "ones.pt")
    others = torch.from_numpy(np.arange(4.0)), torch.load(tmp_path / "ones.pt")
    for tensor in (*others, torch.ones(4).share_memory_(), whole[:4], whole.view(3, 4).T[1:]):
        before = tensor.clone()
        twin = shared(tensor)
        assert not is_shared(twin)
        assert not is_shared(tensor)
        tensor.fill_(7)
        assert torch.equal(twin, before)


def test_tied_parameters_stay_tied_and_layouts_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    model.append(model[0])
    torch.manual_seed(0)
    images = net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    captured = capture(images, (IMAGES,)).module
    assert captured.get_parameter("0.weight").stride() == images[0].weight.stride()
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    tied.append(tied[0])
    captured = capture(tied, (torch.zeros(2, 4),)).module
    assert captured.get_parameter("0.weight") is captured.get_parameter("2.weight")
    assert address(captured.get_parameter("0.weight")) == address(tied[0].weight)


def test_unsharing_twice_copies_once() -> None:
    one = torch.ones(3)
    twin = shared(one)
    unshare((twin, one))
    places = address(twin), address(one)
    assert places[0] != places[1]
    unshare((twin, one))
    assert (address(twin), address(one)) == places


def test_a_module_that_nobody_uses_is_gone_at_once() -> None:
    """Its memory does not wait for the garbage collector."""
    import weakref

    captured = capture(net(), (IMAGES,)).module
    weight = weakref.ref(captured.get_parameter("0.weight"))
    gc.disable()
    try:
        graph = captured.graph
        del captured
        assert weight() is None
    finally:
        gc.enable()
    graph.lint()


def test_threads_may_compile_one_model() -> None:
    model = net()
    before, places = state(model), [address(p) for p in model.parameters()]
    half = MagnitudePruning(ratio=0.5)
    with ThreadPoolExecutor(3) as pool:
        programs = list(pool.map(lambda _: fx.compile(model, (IMAGES,), passes=[half]), range(6)))
    assert same(state(model), before)
    assert len({str(p.report.params) for p in programs}) == 1
    first = state(programs[0].module)
    assert all(same(state(p.module), first) for p in programs)
    expected = copy.deepcopy(programs[1].module)(IMAGES)
    trained(programs[0].module)
    trained(model)
    assert torch.equal(programs[1].module(IMAGES), expected)
    assert places
