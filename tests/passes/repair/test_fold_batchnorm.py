"""BatchNorm goes into the map before it, and out of the graph, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.passes import FoldBatchNorm
from models import build, randomize, rebatch, tensors
from programs import PRUNABLE, program


def norms(module: CapturedModule) -> list[str]:
    return [n.name for n in module.graph.nodes if n.target == torch.ops.aten.batch_norm.default]


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_output_stays(name: str) -> None:
    found = program(name)
    folded = fx.apply(found, FoldBatchNorm())
    _, args, kwargs = build(name)
    args, kwargs = rebatch((args, kwargs), 3)
    for new, old in zip(
        tensors(folded(*args, **kwargs)), tensors(found(*args, **kwargs)), strict=True
    ):
        torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-12)


class Maps(nn.Module):
    """A map of every kind under a norm: with and without bias, affine or not, in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.plain, self.plain_norm = (
            nn.Conv2d(6, 4, 1, bias=False),
            nn.BatchNorm2d(4, affine=False),
        )
        self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, eps=0.1)
        self.head, self.head_norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv_norm(self.conv(x)))
        x = torch.relu(self.plain_norm(self.plain(x)))
        x = self.up_norm(self.up(x))
        return self.head_norm(self.head(x.mean((2, 3))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_after_maps_of_every_kind_leave_the_graph(dtype: torch.dtype) -> None:
    net = randomize(Maps()).to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    folded = fx.compile(net, (x,), passes=[FoldBatchNorm()])
    torch.testing.assert_close(folded(x), net(x))
    assert norms(folded.module) == []
    names = set(folded.module.state_dict())
    assert names == {
        f"{layer}.{leaf}"
        for layer in ("conv", "plain", "up", "head")
        for leaf in ("weight", "bias")
    }


def test_a_map_without_a_bias_gets_a_trainable_one() -> None:
    found = fx.apply(program("conv_chain"), FoldBatchNorm())
    bias = found.module.get_parameter("first.0.bias")
    _, args, _ = build("conv_chain")
    found(*args).sum().backward()
    assert bias.grad is not None
    assert bool((bias.grad != 0).any())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dense_concat", "3 BatchNorm not folded: no linear map stands before it"),
        ("reused_module", "3 BatchNorm not folded: no linear map stands before it"),
    ],
)
def test_norms_that_stay_are_counted_with_the_reason(name: str, reason: str) -> None:
    plan = FoldBatchNorm().plan(program(name))
    assert plan.edits == ()
    assert reason in plan.notes


class Shared(nn.Module):
    """One map under two norms, and one whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.other, self.norms = nn.Linear(4, 4), nn.Linear(4, 4), nn.ModuleList()
        self.norms.extend(nn.BatchNorm1d(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[1](torch.relu(self.norms[0](self.map(x)) * 2 + self.map(x)))
        y = self.other(x)
        return self.norms[2](y) + y  # type: ignore[no-any-return]


def test_what_others_read_is_not_folded() -> None:
    net = randomize(Shared())
    x = torch.randn(3, 4)
    found = fx.compile(net, (x,))
    plan = FoldBatchNorm().plan(found)
    assert plan.edits == ()
    torch.testing.assert_close(fx.apply(found, FoldBatchNorm())(x), net(x), rtol=0, atol=0)


def test_a_norm_that_is_neutral_by_chance_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.0)).eval()
    found = fx.compile(net, (torch.randn(2, 3, 4, 4),))
    weight = found.module.get_parameter("0.weight").detach()
    just = fx.Plan((fx.Replace("0.weight", weight * 2),))

    class Doubled:
        def plan(self, program: fx.Program) -> fx.Plan:
            return just

    assert len(norms(fx.apply(found, Doubled()).module)) == 1


def test_a_program_in_training_mode_is_refused() -> None:
    model, args, kwargs = build("conv_chain")
    found = fx.compile(model, args, kwargs)
    found.module.train()
    with pytest.raises(PlanError, match=r"call program.module.eval\(\) first"):
        FoldBatchNorm().plan(found)
