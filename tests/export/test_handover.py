"""A program's own graph gives the file that tracing it once more gives, to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.errors import ExportError
from fxcompress.export import check, to_onnx
from fxcompress.export.onnx import write
from fxcompress.export.onnx.exportable import inputs_of
from fxcompress.export.onnx.handover import handed_over, keeps_free
from fxcompress.passes import RandomPruning
from models import normal
from programs import program

NETS = ("fused_attention", "grouped_conv", "projected_residual", "reused_module", "swiglu")


def is_handed_over(one: fx.Program) -> bool:
    return handed_over(one.module, inputs_of(one)) is not None


@pytest.mark.parametrize("name", NETS)
def test_the_file_is_that_of_a_trace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = fx.apply(program(name), RandomPruning(ratio=0.4))
    assert is_handed_over(small)
    to_onnx(small, tmp_path / "own.onnx")
    monkeypatch.setattr(write, "handed_over", lambda *_: None)
    to_onnx(small, tmp_path / "traced.onnx")
    assert (tmp_path / "own.onnx").read_bytes() == (tmp_path / "traced.onnx").read_bytes()


def test_the_program_is_as_it_was(tmp_path: Path) -> None:
    one = program("swiglu")
    before = str(one.module.graph), [node.meta.get("val") for node in one.module.graph.nodes]
    to_onnx(one, tmp_path / "a.onnx")
    after = [node.meta.get("val") for node in one.module.graph.nodes]
    assert str(one.module.graph) == before[0]
    assert all(new is old for new, old in zip(after, before[1], strict=True))


class Counting(nn.Module):
    """Writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.seen.view(-1).add_(y.sum(0))
        return y + self.seen


class Pair(nn.Module):
    """Two free dimensions of one size, and a table that ends at 12."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(4, 3), nn.Parameter(normal(12, 4))

    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, Tensor | float]:
        y = x + self.table[: x.shape[1]]
        return {"y": self.layer(y).relu_() * scale, "scale": scale}


class Doubling(nn.Module):
    """Its second input is twice as long as its first."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x]) * y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x))
        return out


class Returning(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


def test_dimensions_of_one_size_stay_apart(tmp_path: Path) -> None:
    one = fx.compile(Pair(), (normal(6, 6, 4),), dynamic={0: {0: "batch", 1: "time"}})
    assert is_handed_over(one)
    file = to_onnx(one, tmp_path / "a.onnx")
    assert file.dynamic == {key: {0: "batch", 1: "time"} for key in ("x", "y")}
    assert check(file, one).ok


@pytest.mark.parametrize(
    ("model", "args", "dynamic"),
    [
        (Counting(), (normal(2, 4),), "batch"),
        (Doubling(), (normal(2, 4), normal(4, 4)), {0: {0: "half"}, 1: {0: "whole"}}),
        (Returning(), (normal(2, 4),), "batch"),
    ],
    ids=["writes to a buffer", "sizes that follow", "an input as output"],
)
def test_what_the_graph_alone_does_not_say_is_traced(
    model: nn.Module, args: tuple[Tensor, ...], dynamic: Any, tmp_path: Path
) -> None:
    one = fx.compile(model, args, dynamic=dynamic)
    assert not is_handed_over(one)
    assert check(to_onnx(one, tmp_path / "a.onnx"), one).ok


def test_tied_tensors_are_one_in_the_file(tmp_path: Path) -> None:
    one = fx.compile(Tied(), (normal(2, 4),))
    file = to_onnx(one, tmp_path / "a.onnx")
    assert check(file, one).ok


def test_a_dimension_that_comes_out_fixed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = program("swiglu")
    inputs = inputs_of(one)
    graph = handed_over(one.module, inputs)
    assert graph is not None
    assert keeps_free(graph, inputs)
    (node,) = (n for n in graph.graph.nodes if n.name == graph.graph_signature.user_inputs[0])
    assert int(node.meta["val"].shape[0]) >= 2  # which fixes it
    assert not keeps_free(graph, inputs)

    def refuse(*_: Any) -> None:
        raise ExportError("traced after all")

    monkeypatch.setattr(write, "keeps_free", lambda *_: False)
    monkeypatch.setattr(write, "_traced", refuse)
    with pytest.raises(ExportError, match="traced after all"):
        to_onnx(one, tmp_path / "a.onnx")
