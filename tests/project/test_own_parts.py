"""A criterion, a method and a step of one's own are one file each, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress as fx
from fxcompress.cli.recipes import Sizes, make_passes
from fxcompress.passes import LeastSquaresPruning, StructuredPass
from models import build
from own_criterion import EveryOther
from own_method import SpreadPruning
from own_step import Shrink

OWN: list[Any] = [
    StructuredPass(criterion=EveryOther(offset=1), ratio=0.5, round_to=1),
    StructuredPass(criterion=SpreadPruning(), reconstruction=LeastSquaresPruning(), ratio=0.5),
    SpreadPruning(ratio=0.5, power=2),
    SpreadPruning(budget=fx.Budget(flops=0.6, allocation="global")),
    Shrink(least=0.25),
]


@pytest.mark.parametrize("one", OWN, ids=repr)
def test_it_runs_and_is_in_history_as_it_can_be_typed(one: Any, tmp_path: Path) -> None:
    model, args, kwargs = build("conv_chain")
    done = fx.compile(model, args, kwargs, passes=[one], task=[args[0]], checkpoint=tmp_path / "a")
    assert done.history == (repr(one),)
    assert done.report.passes[-1].repr == repr(one)
    assert done.report.checks[-1].ok
    done.save(tmp_path / "b.fxc")
    assert fx.load(tmp_path / "b.fxc").recipe == fx.Pipeline(passes=(one,))
    assert make_passes([repr(one)], Sizes()) == (one,)
    assert fx.Recipe.from_yaml(one.to_yaml()) == one
    again = fx.compile(model, args, kwargs, passes=[one], task=[args[0]], checkpoint=tmp_path / "a")
    for name, value in done.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


def test_what_they_say_holds() -> None:
    model, args, kwargs = build("conv_chain")
    small = fx.compile(model, args, kwargs, passes=OWN[:1])
    for axes in small.kept.values():
        for index in (each for each in axes if each is not None):
            assert (index % 2 == 1).all(), "with an offset of one the odd units matter"
    (note,) = fx.compile(model, args, kwargs, passes=OWN[-1:], seed=3).report.passes[-1].notes
    assert note.startswith("every weight times 0.")
