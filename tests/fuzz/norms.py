"""Families that scale: norms of every kind, layer scales, gates, weights that are normalised."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

from fuzz.blocks import WIDTHS, Block, Shape, divisors, family, layer, normal

BATCHNORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
INSTANCENORMS = {2: nn.InstanceNorm1d, 3: nn.InstanceNorm2d, 4: nn.InstanceNorm3d}


@family(weight=2)
def batch_norm(rng: random.Random, shape: Shape) -> Block:
    affine = rng.random() < 0.8
    return layer(BATCHNORMS[len(shape)](shape[0], affine=affine))


@family(2, 3, 4)
def group_norm(rng: random.Random, shape: Shape) -> Block:
    return layer(nn.GroupNorm(rng.choice(divisors(shape[0])), shape[0], affine=rng.random() < 0.8))


@family(2, 3, 4, weight=0.5)
def instance_norm(rng: random.Random, shape: Shape) -> Block | None:
    if max(shape[1:]) < 2:
        return None
    kind = INSTANCENORMS[len(shape)]
    return layer(kind(shape[0], affine=rng.random() < 0.5, track_running_stats=rng.random() < 0.3))


@family(weight=1.5)
def layer_norm(rng: random.Random, shape: Shape) -> Block:
    count = rng.choice((1, 1, 1, min(2, len(shape))))
    return layer(nn.LayerNorm(shape[-count:], elementwise_affine=rng.random() < 0.8))


@family(1, 2)
def rms_norm(rng: random.Random, shape: Shape) -> Block:
    if rng.random() < 0.5:
        return layer(nn.RMSNorm(shape[-1]))

    def by_hand(b: Any, x: Tensor) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * b.gain

    return Block("rms norm by hand", by_hand, gain=normal(rng, shape[-1]))


@family(weight=0.7)
def layer_scale(rng: random.Random, shape: Shape) -> Block:
    axis = rng.choice((0, len(shape) - 1))
    gain = normal(rng, shape[axis], *([1] * (len(shape) - 1 - axis)))
    if rng.random() < 0.5:
        return Block("x * gain", lambda b, x: x * b.gain, gain=gain)
    return Block("x + bias", lambda b, x: x + b.bias, bias=gain)


@family(weight=0.5)
def full_bias(rng: random.Random, shape: Shape) -> Block:
    return Block("x + table", lambda b, x: x + b.table, table=normal(rng, *shape))


@family(3, 4, weight=1)
def squeeze_excite(rng: random.Random, shape: Shape) -> Block:
    channels, inner = shape[0], rng.choice((2, 4))
    space = tuple(range(2, len(shape) + 1))

    def run(b: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(b.up(F.relu(b.down(x.mean(space)))))
        return x * gate[(..., *([None] * len(space)))]

    return Block(
        "squeeze and excite",
        run,
        down=nn.Linear(channels, inner),
        up=nn.Linear(inner, channels),
    )


@family(3, weight=0.7)
def normalised_convolution(rng: random.Random, shape: Shape) -> Block:
    conv = nn.Conv2d(shape[0], rng.choice(WIDTHS), 3, padding=1)
    if rng.random() < 0.5:
        return layer(parametrizations.weight_norm(conv), "weight-normed conv")

    def standardised(b: Any, x: Tensor) -> Tensor:
        weight = b.conv.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        spread = weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (spread + 1e-3), b.conv.bias, padding=1)

    return Block("weight-standardised conv", standardised, conv=conv)
