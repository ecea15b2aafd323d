"""The fuzzer of nets: it draws what it says, and finds the faults it is there to find."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

import fxcompress as fx
from fuzz import nets, oracle
from fuzz.blocks import FAMILIES
from fuzz.methods import PASSES


@pytest.mark.parametrize("seed", range(8))
def test_a_few_nets_keep_every_law(seed: int) -> None:
    assert oracle.examine(seed).fault is None


def test_a_seed_is_a_net() -> None:
    first, again = nets.draw(3), nets.draw(3)
    assert first.net.describe() == again.net.describe()
    assert torch.equal(first.x, again.x)
    with torch.no_grad():
        assert torch.equal(first.net(first.x), again.net(first.x))


def test_every_family_is_drawn() -> None:
    drawn = Counter(block.family for seed in range(400) for block in nets.draw(seed).net.blocks)
    assert FAMILIES.keys() <= drawn.keys()


def test_every_pass_is_tried() -> None:
    tried = {type(make(random.Random(0))) for make in PASSES.values()}
    named = [getattr(fx.passes, name) for name in fx.passes.__all__]
    passes = {kind for kind in named if isinstance(kind, type) and hasattr(kind, "plan")}
    assert passes - tried == {fx.passes.Structured, fx.passes.StructuredPass}


def test_a_wrong_reference_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws compare: against a model that was not masked no cut agrees."""
    monkeypatch.setattr(oracle, "zero_masked", lambda model, program: model)
    faults = [oracle.examine(seed).fault for seed in range(6)]
    assert any(fault and fault.startswith("selection: BrokenLawError") for fault in faults)
