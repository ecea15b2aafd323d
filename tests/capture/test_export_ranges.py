"""A file is compared with its program over the whole range of every free axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxcompress as fx
from fxcompress.errors import VerificationError
from fxcompress.export import check, to_onnx
from models import normal
from nets_branching import OnBatch, OnLength, OnOne, Related

CASES: dict[str, tuple[nn.Module, tuple[int, ...], dict[int, dict[int, str]], set[str]]] = {
    "to an end": (OnBatch("from", 16), (3, 4), {}, {"batch=1", "batch=15"}),
    "from an end": (OnBatch("from", 3), (5, 4), {}, {"batch=3"}),
    "multiples": (OnBatch("multiple", 3), (3, 4), {}, {"batch=1023"}),
    "from two": (OnOne("branch"), (3, 4), {}, {"batch=1024"}),
    "two axes": (OnLength(7), (2, 5, 4), {0: {0: "n", 1: "m"}}, {"n=1, m=5", "n=2, m=6"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_ends_of_a_range_are_tried(name: str, tmp_path: Path) -> None:
    model, shape, dynamic, wanted = CASES[name]
    half = fx.passes.MagnitudePruning(ratio=0.5)
    program = fx.compile(model, (normal(*shape),), dynamic=dynamic or "batch", passes=[half])
    result = check(to_onnx(program, tmp_path / "a.onnx"), program)
    assert {f"random, {one}" for one in wanted} <= {one.label for one in result.inputs}


def test_axes_that_follow_from_others_keep_their_relation(tmp_path: Path) -> None:
    axes = {0: {0: "short"}, 1: {0: "long"}}
    program = fx.compile(Related(), (normal(3, 4), normal(6, 4)), dynamic=axes)
    file = to_onnx(program, tmp_path / "a.onnx")
    assert [*file.dynamic["x"].values(), *file.dynamic["y"].values()] == ["short", "long"]
    result = check(file, program)
    assert "random, short=1, long=2" in {one.label for one in result.inputs}


def test_a_file_that_is_wrong_inside_the_range_is_found_out(tmp_path: Path) -> None:
    """A program that stated too wide a range: the file of one branch, the program of the other."""

    class Switching(nn.Module):
        interface: Any = None

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> Any:
            return self.module(x) * (1 if x.shape[0] < 15 else 2)

    program = fx.compile(OnBatch("from", 16), (normal(3, 4),))
    file = to_onnx(program, tmp_path / "a.onnx")
    switching = Switching(program.module)
    switching.interface = program.module.interface
    with pytest.raises(VerificationError, match="batch=15"):
        check(file, fx.export.Example(switching, program.args, {}, program.dynamic))
