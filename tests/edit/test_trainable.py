"""Projections that train: read through matrices, saved as they are, folded into smaller weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Project, TrainableProject
from fxcompress.edit.projected import Matrix
from fxcompress.program import Program
from models import normal
from programs import program

ROUNDING = 1e-10  # float64: sums of a few dozen terms
NETS = ["mlp", "swiglu", "fused_attention", "conv_chain", "dense_concat", "grouped_conv"]


@dataclass(frozen=True)
class Just:
    """A pass with these edits."""

    edits: Callable[[Program], Any]

    def plan(self, found: Program) -> fx.Plan:
        return fx.Plan(tuple(self.edits(found)))


def matrices(group: ChannelGroup, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Another pair for each cell; positive, as variances are mixed too."""
    k = max(1, 2 * group.units // 3)
    cells = (group.cells,) if group.over else ()
    encode = normal(*cells, k, group.units, seed=seed).double().abs()
    return encode, normal(*cells, group.units, k, seed=seed + 1).double().abs()


def projectable(found: Program) -> list[ChannelGroup]:
    return [g for g in found.groups if not g.frozen and g.units > 1][:3]


def trained(found: Program) -> list[TrainableProject]:
    pairs = [(group, matrices(group)) for group in projectable(found)]
    return [TrainableProject(g, Matrix(encode), Matrix(decode)) for g, (encode, decode) in pairs]


def own(name: str) -> Program:
    """With parameters of its own, which may be trained."""
    shared = program(name)
    dense = copy.copy(shared)
    object.__setattr__(dense, "module", copy.deepcopy(shared.module))
    return dense


@pytest.mark.parametrize("name", NETS)
def test_it_gives_what_the_same_matrices_give_folded_in(name: str) -> None:
    dense = program(name)
    plain = Just(lambda p: [Project(g, *matrices(g)) for g in projectable(p)])
    wanted, new = fx.apply(dense, plain), fx.apply(dense, Just(trained))
    check = new.report.checks[-1]
    assert (check.kind, check.ok, "once finalised" in check.compared) == ("scattered", True, True)
    torch.testing.assert_close(new(*dense.args), wanted(*dense.args), rtol=ROUNDING, atol=ROUNDING)
    final = new.finalize()
    assert final.cost() == wanted.cost()
    for key, value in wanted.module.state_dict().items():
        torch.testing.assert_close(final.module.state_dict()[key], value, rtol=0, atol=0)
    assert [n.op for n in final.module.graph.nodes] == [n.op for n in wanted.module.graph.nodes]
    assert final.module.state_dict().keys() == wanted.module.state_dict().keys()


def test_gradients_reach_the_matrices_and_the_dense_weights() -> None:
    new = fx.apply(own("mlp"), Just(trained))
    new(*new.args).square().sum().backward()
    named = dict(new.module.named_parameters())
    assert {"first.weight", "second.weight"} < named.keys()
    assert sum("matrices" in name for name in named) == 2 * len(projectable(program("mlp")))
    assert all(p.grad is not None and bool(p.grad.any()) for p in named.values())


def test_what_was_trained_is_what_finalize_folds() -> None:
    new = fx.apply(own("mlp"), Just(trained))
    before = new(*new.args)
    optimizer = torch.optim.SGD(new.module.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        new(*new.args).square().sum().backward()
        optimizer.step()
    after = new(*new.args)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(new.finalize()(*new.args), after, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mlp", "fused_attention", "dense_concat"])
def test_a_file_keeps_it_in_training(name: str, tmp_path: Path) -> None:
    new = fx.apply(program(name), Just(trained))
    new.save(tmp_path / "training.fxc")
    loaded = fx.load(tmp_path / "training.fxc")
    args = new.args
    torch.testing.assert_close(loaded(*args), new(*args), rtol=0, atol=0)
    assert loaded.cost() == new.cost()
    assert len(list(loaded.module.parameters())) == len(list(new.module.parameters()))
    torch.testing.assert_close(loaded.finalize()(*args), new(*args), rtol=ROUNDING, atol=ROUNDING)


def test_later_passes_are_told_to_finalize_first() -> None:
    new = fx.apply(program("mlp"), Just(trained))
    with pytest.raises(fx.PlanError, match="finalize"):
        fx.apply(new, Just(lambda p: [fx.Reparametrize("second.weight", nn.Identity())]))
    smaller = fx.apply(new.finalize(), fx.passes.MagnitudePruning(ratio=0.5))
    assert smaller.report.checks[-1].ok


class Indices(nn.Module):
    def forward(self) -> Tensor:
        return torch.arange(3)


def test_what_cannot_be_trained_is_refused() -> None:
    group = program("mlp").group("first")
    encode, decode = (Matrix(m) for m in matrices(group))
    with pytest.raises(fx.PlanError, match="gives a matrix"):
        fx.apply(program("mlp"), Just(lambda p: [TrainableProject(group, Indices(), decode)]))
    with pytest.raises(fx.PlanError, match="expected"):
        fx.apply(program("mlp"), Just(lambda p: [TrainableProject(group, decode, encode)]))
    other = Project(program("mlp").group("second"), torch.arange(3))
    both = [TrainableProject(group, encode, decode), other]
    with pytest.raises(fx.PlanError, match="two passes"):
        fx.apply(program("mlp"), Just(lambda p: both))


def test_onnx_holds_the_smaller_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    new = fx.compile(net, (torch.randn(2, 5),), passes=[Just(trained)])
    fx.export.to_onnx(new, tmp_path / "small.onnx")
    assert fx.export.check(tmp_path / "small.onnx", new).ok
    shapes = [list(one.dims) for one in onnx.load(tmp_path / "small.onnx").graph.initializer]
    assert [8, 5] not in shapes
    assert [5, 5] in shapes
