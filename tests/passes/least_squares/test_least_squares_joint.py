"""Least squares where several groups hold inputs of one layer."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
import models
from fxcompress.layers.weights import consumers
from fxcompress.passes import LeastSquaresPruning
from fxcompress.program import Program
from fxcompress.stats import observe

EXACT = 1e-12


class Bottleneck(nn.Module):
    """A layer reads both what the groups of a convolution share, and what tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 12, 1)
        self.between, self.leave = nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.between(torch.relu(self.enter(x))))
        return self.leave(x)  # type: ignore[no-any-return]


def seen(program: Program, node: str) -> Tensor:
    """The values of a node on the data, as rows of its channels."""
    found: list[Tensor] = []
    keep = partial(lambda rows, value: rows.append(value.clone()), found)
    observe(program, {node: keep})
    value = torch.cat(found)
    return (value.movedim(1, -1) if value.dim() == 4 else value).flatten(0, -2)


def example(name: str) -> tuple[nn.Module, Tensor, str]:
    """A model, its data, and the layer in question."""
    if name == "attention":
        model, args, _ = models.build("fused_attention")
        return model, models.rebatch(args, 40)[0], "proj"
    x = torch.randn(20, 3, 5, 5, dtype=torch.float64)
    return models.randomize(Bottleneck()).double(), x, "leave"


@pytest.mark.parametrize("name", ["attention", "bottleneck"])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_a_layer_is_refitted_to_what_all_groups_leave_of_its_inputs(
    name: str, sequential: bool, centred: bool
) -> None:
    """What it gives is what torch.linalg.lstsq finds on the inputs that it has now."""
    model, x, layer = example(name)
    program = fx.compile(model, (x,), task=[x])
    weight = f"{layer}.weight"
    calls = {
        (one.node, one.value)
        for group in program.groups
        for one in consumers(program, group)
        if one.weight == weight and not group.frozen
    }
    ((node, value),) = calls
    method = LeastSquaresPruning(
        ratio=0.5, lambda_rel=EXACT, sequential=sequential, centred=centred, round_to=1,
        groups=tuple(g.name for g in program.groups if not g.frozen and g.kind != "residual"
                     and any(one.weight == weight for one in consumers(program, g))),
    )  # fmt: skip

    small = fx.apply(program, method)

    inputs, wanted = seen(small, value), seen(program, node)
    assert inputs.shape[1] <= program.module.get_parameter(weight).shape[1] / 2
    bias = model.get_parameter(f"{layer}.bias").detach()
    if centred:  # the bias is free
        bias = torch.zeros_like(bias)
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)
    best = inputs @ torch.linalg.lstsq(inputs, wanted - bias).solution + bias
    # a ridge of 1e-12 of the signal, and a Gram matrix squares the condition
    torch.testing.assert_close(seen(small, node), best, rtol=1e-5, atol=1e-6)
