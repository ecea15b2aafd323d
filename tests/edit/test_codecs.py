"""A codec of one's own, in one file: stored, proved, saved, exported and folded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.codecs import Codec, Parts
from fxcompress.io import saveable
from fxcompress.program import Program

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@saveable
@dataclass(frozen=True)
class Ternary(Codec):
    """Minus, nothing or plus one scale for all: signs of what is above a share of the largest."""

    share: float = 0.5
    loose: float = 1.0  # less than 1 promises too much

    def encode(self, value: Tensor) -> dict[str, Tensor]:
        largest = value.detach().abs().max()
        signs = value.detach().sign() * (value.detach().abs() > self.share * largest)
        return {"signs": signs.to(torch.int8), "scale": largest}

    def decode(self, parts: Parts) -> Tensor:
        return parts["signs"].to(parts["scale"].dtype) * parts["scale"]

    def bound(self, parts: Parts) -> Tensor:
        return parts["scale"] * max(self.share, 1 - self.share) * self.loose

    def bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return prod(shape) + dtype.itemsize

    def __str__(self) -> str:
        return f"ternary above {self.share:g}"


@dataclass(frozen=True)
class Just:
    """A pass with these edits."""

    edits: Callable[[Program], Any]

    def plan(self, found: Program) -> fx.Plan:
        return fx.Plan(tuple(self.edits(found)))


def ternary(codec: Codec) -> Just:
    def edits(found: Program) -> list[fx.Store]:
        weight = found.module.get_parameter("0.weight")
        return [fx.Store("0.weight", codec, codec.encode(weight))]

    return Just(edits)


@pytest.fixture
def dense() -> Program:
    torch.manual_seed(0)
    return fx.compile(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (X,))


def test_a_codec_of_ones_own_goes_all_the_way(dense: Program, tmp_path: Path) -> None:
    new = fx.apply(dense, ternary(Ternary(0.25)))
    assert new.report.checks[-1].kind == "decoded"
    assert new.report.stored[0].form == "ternary above 0.25"
    assert new.report.bytes.after == new.report.bytes.before - 48 * 4 + 48 + 4
    new.save(tmp_path / "ternary")
    loaded = fx.load(tmp_path / "ternary")
    torch.testing.assert_close(loaded(X), new(X), rtol=0, atol=0)
    kept: Any = loaded.module.get_submodule("0.weight")
    assert kept.codec == Ternary(0.25)
    torch.testing.assert_close(loaded.finalize()(X), new(X), rtol=0, atol=0)
    fx.export.to_onnx(loaded, tmp_path / "ternary.onnx")
    assert fx.export.check(tmp_path / "ternary.onnx", loaded).ok


def test_a_codec_that_promises_too_much_fails_its_proof(dense: Program) -> None:
    with pytest.raises(fx.VerificationError, match="its codec says at most"):
        fx.apply(dense, ternary(Ternary(0.5, loose=0.5)))


@dataclass(frozen=True)
class Raised(Ternary):
    """Zeros do not stay zeros."""

    def encode(self, value: Tensor) -> dict[str, Tensor]:
        parts = super().encode(value)
        return {**parts, "signs": parts["signs"] | 1}

    def bound(self, parts: Parts) -> Tensor:
        return 2 * parts["scale"]


def test_a_codec_that_loses_zeros_fails_its_proof(dense: Program) -> None:
    sparse = fx.apply(dense, fx.passes.NMSparsity(include="0.weight", n=1, m=2))
    with pytest.raises(fx.VerificationError, match="not zero everywhere where it was zero"):
        fx.apply(sparse, ternary(Raised()))
