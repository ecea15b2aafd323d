"""Models on the meta device, which holds shapes and no values, go through the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fx
from fxcompress.passes import Folding, MagnitudePruning, RandomPruning, SlimmingPruning
from models import build

NETS = ("conv_chain", "fused_attention", "rotary_grouped_attention")


def _on(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), tree)


@pytest.mark.parametrize("name", NETS)
def test_shapes_on_the_meta_device_are_those_of_a_model_with_values(name: str) -> None:
    model, args, kwargs = build(name)
    half = RandomPruning(ratio=0.5)
    expected = fx.compile(model, args, kwargs, passes=[half])
    found = fx.compile(model.to("meta"), *_on((args, kwargs)), passes=[half])
    assert found.module.code.replace("'meta'", "'cpu'") == expected.module.code
    shapes = {key: value.shape for key, value in expected.module.state_dict().items()}
    assert {key: value.shape for key, value in found.module.state_dict().items()} == shapes
    assert all(value.is_meta for value in found.module.parameters())
    assert found.report.params == expected.report.params
    assert found.report.flops == expected.report.flops
    assert "not verified after RandomPruning" in str(found.report)
    assert "meta device" in str(found.report)
    outputs = found(*_on(args), **_on(kwargs))
    assert all(leaf.is_meta for leaf in pytree.tree_leaves(outputs))


class Number(nn.Module):
    """Units through a function of a number in the graph, and a sum that no weight shields."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(4, 6), function

    def forward(self, x: Tensor) -> Tensor:
        number = torch.full((), 2.0, device=x.device)
        out: Tensor = self.function(self.first(x), number).to(x.dtype).sum(-1)
        return out


@pytest.mark.parametrize(
    ("function", "exact"),
    [(torch.mul, True), (torch.div, True), (torch.add, False), (torch.eq, True)],
    ids=["mul", "div", "add", "eq"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_number_that_the_forward_makes_has_its_value_everywhere(
    function: Callable[[Tensor, Tensor], Tensor], exact: bool, device: str
) -> None:
    program = fx.compile(Number(function).to(device), (torch.ones(2, 4, device=device),))
    assert next(g.exact for g in program.groups if g.name == "first") == exact


class Literal(nn.Module):
    """Units that are shifted by a number which the forward writes out."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.first, self.number = nn.Linear(4, 6), number

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.first(x) + torch.tensor([self.number], device=x.device)).sum(-1)
        return out


@pytest.mark.parametrize("number", [0.0, 2.0])
def test_a_number_that_lost_its_value_may_be_any(number: float) -> None:
    program = fx.compile(Literal(number).to("meta"), (torch.ones(2, 4, device="meta"),))
    assert not next(g.exact for g in program.groups if g.name == "first")


@pytest.mark.parametrize(
    "one",
    [MagnitudePruning(ratio=0.5), Folding(ratio=0.5), SlimmingPruning(ratio=0.5)],
    ids=lambda one: type(one).__name__,
)
def test_what_needs_values_says_so(one: fx.program.Pass) -> None:
    model, args, kwargs = build("conv_chain")
    with pytest.raises(fx.PlanError, match="meta device"):
        fx.compile(model.to("meta"), *_on((args, kwargs)), passes=[one])


def test_a_program_without_values_is_not_saved(tmp_path: Path) -> None:
    model, args, kwargs = build("mlp")
    program = fx.compile(model.to("meta"), *_on((args, kwargs)))
    with pytest.raises(fx.FxCompressError, match="meta device"):
        program.save(tmp_path / "a.fxc")
    assert not list(tmp_path.iterdir())
