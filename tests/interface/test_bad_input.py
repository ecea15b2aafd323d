"""What users get wrong: one clear error of our own, and everything left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from models import build

Passes = fx.passes


class BranchesOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def mlp() -> tuple[nn.Module, tuple[Any, ...]]:
    model, args, _ = build("mlp", torch.float32)
    return model, args


def with_nan() -> nn.Module:
    model, _ = mlp()
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    return model


def compiled(*passes: Any) -> fx.Program:
    model, args = mlp()
    return fx.compile(model, args, passes=passes)


CASES: dict[str, tuple[Callable[[], Any], type[fx.FxCompressError], str]] = {
    "a branch on data": (
        lambda: fx.compile(BranchesOnData(), (torch.zeros(2, 3),)),
        fx.CaptureError,
        "BranchesOnData",
    ),
    "no example inputs": (lambda: fx.compile(mlp()[0]), fx.CaptureError, "example inputs"),
    "wrong dtype": (
        lambda: fx.compile(mlp()[0], (torch.zeros(2, 5, dtype=torch.float64),)),
        fx.CaptureError,
        "float64",
    ),
    "wrong device": (
        lambda: fx.compile(mlp()[0], (torch.zeros(2, 5, device="meta"),)),
        fx.CaptureError,
        "meta",
    ),
    "NaN weights": (
        lambda: fx.compile(with_nan(), mlp()[1]),
        fx.CaptureError,
        r"first\.weight",
    ),
    "a ratio of one": (
        lambda: compiled(Passes.MagnitudePruning(ratio=1.0)),
        fx.BudgetError,
        "ratio",
    ),
    "a negative ratio": (
        lambda: compiled(Passes.MagnitudePruning(ratio=-0.1)),
        fx.BudgetError,
        "ratio",
    ),
    "a budget below the minimum": (
        lambda: compiled(Passes.MagnitudePruning(budget=fx.Budget(flops=0.0001))),
        fx.BudgetError,
        "below the minimum",
    ),
    "an unknown glob": (
        lambda: compiled(Passes.MagnitudePruning(ratio=0.5, include=("secnd.*",))),
        fx.BudgetError,
        "second",
    ),
    "nothing to prune": (
        lambda: compiled(Passes.MagnitudePruning(ratio=0.5, exclude=("*",))),
        fx.PlanError,
        "exclude",
    ),
    "a .pt2 that is none": (lambda: fx.compile(__file__), fx.CaptureError, "torch.export.save"),
    "a .pt2 that is missing": (lambda: fx.compile("none.pt2"), fx.CaptureError, r"none\.pt2"),
    "a program that is missing": (lambda: fx.load("none.fxc"), fx.LoadError, r"none\.fxc"),
    "a pass without a plan": (lambda: compiled(_Lazy()), fx.PlanError, "Plan"),
}


class _Lazy:
    def plan(self, program: fx.Program) -> Any:
        return None


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(case: str) -> None:
    act, error, words = CASES[case]
    with pytest.raises(error, match=words):
        act()


def test_the_model_is_as_it_was_after_an_error() -> None:
    model, args = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fx.PlanError):
        fx.compile(model, args, passes=[Passes.MagnitudePruning(ratio=0.5, include=("none",))])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_failing_export_writes_nothing(tmp_path: Path) -> None:
    program = compiled()
    program.module.graph.find_nodes(op="output")[0].args = (None,)
    program.module.recompile()
    with pytest.raises(fx.ExportError):
        fx.export.to_onnx(program, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
