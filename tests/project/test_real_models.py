"""The laws again on architectures as their libraries build them, small and with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxcompress as fx
from models import rebatch, tensors
from real_models import REAL, built
from selection import RandomSelection, zero_masked


@pytest.mark.parametrize("name", REAL)
def test_all_laws_hold(name: str) -> None:
    model, args, kwargs = built(name)
    dense = fx.compile(model, args, kwargs)
    _same(dense(*args, **kwargs), model(*args, **kwargs), 0.0)

    every = RandomSelection(seed=1)
    small = fx.apply(dense, every)  # its own proof includes the groups under norms
    assert small.report.verification is not None
    assert small.report.verification.ok
    assert small.cost() == dense.cost(every.plan(dense).widths)
    assert small.cost().params == sum(p.numel() for p in small.module.parameters())
    assert small.cost().params < 0.6 * dense.cost().params
    assert not dense.analysis.coupling.unknown

    exact = fx.apply(dense, RandomSelection(seed=2, exact_only=True))
    assert exact.cost().params < dense.cost().params  # each has groups under no norm
    reference = zero_masked(model, exact)
    _same(exact(*args, **kwargs), reference(*args, **kwargs), 1e-10)
    args, kwargs = rebatch((args, kwargs), 3)
    _same(exact(*args, **kwargs), reference(*args, **kwargs), 1e-10)


def _same(found: Any, expected: Any, tolerance: float) -> None:
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs
    for a, b in pairs:
        scale = float(b.detach().abs().max())
        assert scale > 0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)
