"""Norms are found by what their operators' schemas say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress as fx
from fxcompress.graph.norms import batch_norms, input_norms

LAYERS = [
    (nn.LayerNorm(4), (1, True, "weight", "bias")),
    (nn.LayerNorm((3, 4), bias=False), (2, True, "weight", None)),
    (nn.RMSNorm(4), (1, False, "weight", None)),
    (nn.GroupNorm(3, 3), (None, True, "weight", "bias")),
    (nn.GroupNorm(3, 3, affine=False), (None, True, None, None)),
]


@pytest.mark.parametrize(("layer", "said"), LAYERS, ids=lambda value: str(value))
def test_a_norm_of_its_input_says_its_axes_and_tensors(
    layer: nn.Module, said: tuple[int | None, bool, str | None, str | None]
) -> None:
    (norm,) = input_norms(fx.compile(layer, (torch.randn(2, 3, 4),)).module)
    assert (norm.last, norm.centred, norm.scale, norm.shift) == said


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True)])
def test_norms_with_running_statistics_are_no_norms_of_their_input(layer: nn.Module) -> None:
    found = fx.compile(layer, (torch.randn(2, 3, 4),)).module
    assert not tuple(input_norms(found))
    assert len(tuple(batch_norms(found))) == isinstance(layer, nn.BatchNorm1d)
