"""Which nodes are activations: what torch.nn counts as such and acts on elements alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress as fx
from fxcompress.rules.pointwise import is_activation

ALONE = [
    nn.CELU(), nn.ELU(), nn.GELU(), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardswish(),
    nn.Hardtanh(), nn.LeakyReLU(), nn.LogSigmoid(), nn.Mish(), nn.PReLU(4), nn.ReLU(),
    nn.ReLU(inplace=True), nn.ReLU6(), nn.RReLU(), nn.SELU(), nn.Sigmoid(), nn.SiLU(),
    nn.SiLU(inplace=True), nn.Softplus(), nn.Softshrink(), nn.Tanh(), nn.Threshold(0.1, 0.2),
]  # fmt: skip
OTHERS = [
    nn.Softmax(1),
    nn.LogSoftmax(1),
    nn.GLU(1),
    nn.Dropout(),
    nn.LayerNorm(4),
    nn.Linear(4, 4),
]


def activations(layer: nn.Module) -> int:
    found = fx.compile(layer.eval(), (torch.randn(2, 4, 4),))
    return sum(is_activation(node) for node in found.module.graph.nodes)


@pytest.mark.parametrize("layer", ALONE, ids=str)
def test_an_activation_of_elements_is_one(layer: nn.Module) -> None:
    assert activations(layer) == 1


@pytest.mark.parametrize("layer", OTHERS, ids=str)
def test_what_mixes_elements_or_is_linear_is_none(layer: nn.Module) -> None:
    assert activations(layer) == 0
