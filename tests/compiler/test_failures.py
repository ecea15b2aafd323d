"""A failing pipeline names the pass, and those that ran before it."""

from __future__ import annotations

import pytest

import fxcompress as fx
from fxcompress.passes import FoldBatchNorm, MagnitudePruning, TaylorPruning
from fxcompress.program import Pass
from models import build


def test_the_pass_and_those_before_it_are_named() -> None:
    model, args, kwargs = build("conv_chain")
    passes: list[Pass] = [MagnitudePruning(ratio=0.5), FoldBatchNorm(), TaylorPruning(ratio=0.25)]
    with pytest.raises(fx.PlanError, match="there are none") as failed:
        fx.compile(model, args, kwargs, passes=passes)
    assert failed.value.__notes__ == [
        "in pass 3 of 3, TaylorPruning(ratio=0.25), after MagnitudePruning(ratio=0.5), "
        "FoldBatchNorm()"
    ]


def test_the_first_pass_has_none_before_it() -> None:
    model, args, kwargs = build("conv_chain")
    with pytest.raises(fx.BudgetError) as failed:
        fx.compile(model, args, kwargs, passes=[MagnitudePruning(ratio=0.5, include="no.such")])
    assert failed.value.__notes__ == [
        "in pass 1 of 1, MagnitudePruning(ratio=0.5, include=('no.such',))"
    ]
