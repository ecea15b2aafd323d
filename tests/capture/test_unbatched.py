"""Inputs without an axis of samples calibrate as a batch of one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import fxcompress.passes as passes
from fxcompress.program import Pass, Program
from fxcompress.stats import gradients
from fxcompress.stats.batching import Batching, batching_of
from models import randomize
from nets_unbatched import GraphAttention, GraphSum, Image, Sequence, Stream
from seeded import once

ROUNDING = 1e-10  # float64: the same sums, in another order
D = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes")  # export of an LSTM

Inputs = tuple[Tensor, ...]


def _graph(nodes: int, draw: torch.Generator) -> Inputs:
    ring = torch.eye(nodes, dtype=D) + torch.eye(nodes, dtype=D).roll(1, 0)
    more = (torch.rand(nodes, nodes, generator=draw) < 0.3).to(D)
    return torch.randn(nodes, 5, generator=draw, dtype=D), (ring + more).clamp(max=1)


def _edges(nodes: int, draw: torch.Generator) -> Inputs:
    ends = torch.randint(nodes, (2, 2 * nodes), generator=draw)
    return torch.randn(nodes, 5, generator=draw, dtype=D), ends


def _steps(count: int, draw: torch.Generator) -> Inputs:
    return (torch.randn(count, 5, generator=draw, dtype=D),)


def _image(size: int, draw: torch.Generator) -> Inputs:
    return (torch.randn(3, size, size, generator=draw, dtype=D),)


Make = tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Inputs]]
NETS: dict[str, Make] = {
    "graph attention": (GraphAttention, _graph),
    "graph of edges": (GraphSum, _edges),
    "image": (Image, _image),
    "sequence": (Sequence, _steps),
    "stream": (Stream, _steps),
}
FREE: dict[str, tuple[Any, Any]] = {
    "graph attention": (
        {0: {0: "n"}, 1: {0: "n", 1: "n"}},
        {0: {1: "n"}, 1: {1: "n", 2: "n"}},
    ),
    "graph of edges": ({0: {0: "n"}, 1: {1: "e"}}, {0: {1: "n"}, 1: {2: "e"}}),
    "stream": ({0: {0: "n"}}, {0: {1: "n"}}),
}
"""Axes that are free without and with an axis of samples."""


def loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.reshape(-1, 3), labels.reshape(-1))


@once
def pair(name: str, free: bool) -> tuple[Program, Program]:
    """The same net on the same things, without and with an axis of samples."""
    make, draw = NETS[name]
    generator = torch.Generator().manual_seed(0)
    net = randomize(make()).to(D)
    data = []
    for size in (9, 6, 7) if free else (9, 9, 9):
        inputs = draw(size, generator)
        rows = net(*inputs).numel() // 3
        data.append((inputs, torch.randint(3, (rows,), generator=generator)))
    one: list[Any] = [(x if len(x) > 1 else x[0], y if y.numel() > 1 else y[0]) for x, y in data]
    many: list[Any] = [(tuple(each[None] for each in x), y[None]) for x, y in data]
    many = [(x if len(x) > 1 else x[0], y) for x, y in many]
    dynamic: tuple[Any, Any] = FREE[name] if free else ("none", "none")
    return (
        fx.compile(net, data[0][0], dynamic=dynamic[0], task=fx.Task(one, loss)),
        fx.compile(
            net, tuple(x[None] for x in data[0][0]), dynamic=dynamic[1], task=fx.Task(many, loss)
        ),
    )


METHODS: dict[str, Pass] = {
    "wanda": passes.WandaPruning(ratio=0.5),
    "flap": passes.FLAPPruning(ratio=0.5),
    "taylor": passes.TaylorPruning(ratio=0.5),
    "taylor units": passes.TaylorPruning(ratio=0.5, form="units"),
    "fisher": passes.TaylorPruning(ratio=0.5, form="fisher"),
    "ippro": passes.IPPRO(ratio=0.5),
    "kron-obs": passes.KronOBSPruning(ratio=0.5, labels="data"),
    "least squares": passes.LeastSquaresPruning(ratio=0.5),
    "two samples": passes.WandaPruning(ratio=0.5, samples=2),
    "slicegpt": passes.SliceGPT(ratio=0.5),
    "tune": passes.TuneNorms(),
}
WHERE = {
    "kron-obs": {"graph attention", "graph of edges", "image"},
    "slicegpt": {"stream"},
    "tune": {"stream"},
}
"""Methods that some nets have nothing for."""
CASES = [
    (net, method, free)
    for net in NETS
    for method in METHODS
    for free in (False, True)
    if net in WHERE.get(method, NETS) and (not free or net in FREE)
]


@pytest.mark.parametrize(("net", "method", "free"), CASES)
def test_one_thing_alone_gives_what_a_batch_of_one_gives(net: str, method: str, free: bool) -> None:
    alone, batched = (fx.apply(program, METHODS[method]) for program in pair(net, free))
    for program in (alone, batched):
        assert all(check.ok for check in program.report.checks)
    found, expected = alone.module.state_dict(), batched.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("net", FREE)
def test_nodes_of_a_graph_are_no_samples(net: str, free: bool) -> None:
    program, _ = pair(net, free)
    assert program.task is not None
    inputs, _ = next(iter(program.task.data))
    assert batching_of(program, inputs) == Batching(independent=False, cuttable=False)


class Rows(nn.Module):
    """Rows that are samples, beside an input that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x) * scale))  # type: ignore[no-any-return]


def rows(dynamic: Any) -> Program:
    x, labels, scale = torch.randn(8, 5, dtype=D), torch.randint(3, (8,)), torch.rand(8, dtype=D)
    data = [((x, scale), labels), ((x.flip(0), scale), labels)]
    net = randomize(Rows()).to(D)
    return fx.compile(net, (x[:6], scale), dynamic=dynamic, task=fx.Task(data, loss))


def test_samples_are_samples_also_beside_what_they_share() -> None:
    program = rows({0: {0: "batch"}})
    assert program.task is not None
    ((x, scale), _), *_ = program.task.data
    assert batching_of(program, (x, scale)) == Batching(independent=True, cuttable=True)
    few, twice = gradients(program, samples=3), gradients(program, squares=True, samples=2)
    assert (few.samples, twice.samples) == (3, 2)  # eight features are no samples


def test_a_batch_of_one_size_is_never_cut_and_says_so_where_it_must_be() -> None:
    x, labels = torch.randn(6, 5, dtype=D), torch.randint(3, (6,))
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(D).eval()
    program = fx.compile(net, (x,), dynamic="none", task=fx.Task([(x, labels)] * 2, loss))
    assert batching_of(program, x) == Batching(independent=True, cuttable=False)
    assert gradients(program).samples == 12
    assert gradients(program, samples=7).samples == 12
    with pytest.raises(fx.FxCompressError, match="dynamic='batch'"):
        gradients(program, squares=True)


def test_the_batches_of_a_new_task_are_looked_at_anew() -> None:
    program, _ = pair("graph attention", False)
    assert program.task is not None
    data = list(program.task.data)
    assert not batching_of(program, data[0][0]).independent
    again = replace(program, task=fx.Task(data, loss))
    assert not batching_of(again, data[0][0]).independent
