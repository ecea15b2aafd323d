"""Families of functions of single entries: activations, and writes in place."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fuzz.blocks import Block, Shape, call, family, layer

Pointwise = Callable[[Tensor], Tensor]

QUIET: dict[str, Pointwise] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "abs": torch.abs,
    "square": torch.square,
    "sin": torch.sin,
    "atan": torch.atan,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "negate": torch.neg,
    "scaled": lambda x: x * 1.5,
    "halved": lambda x: x / 2,
    "clamped": lambda x: x.clamp(-1, 0.5),
    "nan_to_num": torch.nan_to_num,
    "erf": torch.erf,
    "double": lambda x: x + x,
    "detached": lambda x: x + 0.5 * x.detach(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "float_and_back": lambda x: x.double().to(x.dtype),
    "contiguous": lambda x: x.contiguous(),
    "cloned": lambda x: x.clone(),
}
"""Zero where their input is zero."""

LOUD: dict[str, Pointwise] = {
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "cos": torch.cos,
    "exp": lambda x: torch.exp(x.clamp(max=3)),
    "plus_one": lambda x: x + 1.0,
    "minus_from": lambda x: 0.5 - x,
    "hardtanh_above": lambda x: F.hardtanh(x, 0.5, 2.0),
    "clamped_above": lambda x: x.clamp(min=0.25),
    "threshold": lambda x: F.threshold(x, -0.1, 0.7),
    "where": lambda x: torch.where(x > 0.1, x, torch.full_like(x, 0.3)),
    "filled": lambda x: x.masked_fill(x < 0.2, -0.5),
    "ones": lambda x: x + torch.ones(x.shape[-1], dtype=x.dtype, device=x.device),
    "reciprocal": lambda x: 1 / (1 + x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.square() + 1),
    "power": lambda x: (x.abs() + 1) ** 0.5,
    "maximum": lambda x: torch.maximum(x, torch.tensor(0.2, dtype=x.dtype)),
    "log1p_exp": lambda x: torch.log1p(torch.exp(-x.abs())),
    "rounded": lambda x: torch.round(x * 2) / 2 + 0.25,
}
"""Something else where their input is zero."""

INPLACE: dict[str, Pointwise] = {
    "relu_": torch.relu_,
    "mul_": lambda x: x.mul_(0.7),
    "add_": lambda x: x.add_(0.3),
    "clamp_": lambda x: x.clamp_(-1, 1),
    "hardtanh_": lambda x: F.hardtanh(x, 0.5, 2.0, inplace=True),
    "tanh_": torch.tanh_,
    "masked_fill_": lambda x: x.masked_fill_(x < 0, 0.1),
    "neg_": lambda x: x.neg_(),
}


@family(weight=5)
def activation(rng: random.Random, shape: Shape) -> Block:
    name = rng.choice(sorted(QUIET))
    return call(name, QUIET[name])


@family(weight=2)
def offset_activation(rng: random.Random, shape: Shape) -> Block:
    name = rng.choice(sorted(LOUD))
    return call(name, LOUD[name])


@family(weight=1.5)
def in_place(rng: random.Random, shape: Shape) -> Block:
    name = rng.choice(sorted(INPLACE))
    return call(name, INPLACE[name], writes=True)


@family(weight=1)
def in_place_on_view(rng: random.Random, shape: Shape) -> Block:
    """A view is made before the whole is written to, or a part is written to and the whole read."""
    name, axis = rng.choice(sorted(INPLACE)), rng.randrange(1, len(shape) + 1)
    write, kind = INPLACE[name], rng.choice(("before", "part", "split", "dropout"))

    def run(x: Tensor) -> Tensor:
        if kind == "before":
            seen = x.transpose(1, -1)
            write(x)
            return seen.transpose(1, -1) + 0
        if kind == "part":
            write(x.narrow(axis, 0, (x.shape[axis] + 1) // 2))
            return x * 1
        if kind == "split":
            first, *_ = x.split((x.shape[axis] + 1) // 2, axis)
            write(first)
            return x.abs()
        same = F.dropout(x, 0.5, training=False)
        write(same)
        return x + same

    return call(f"{name} {kind} along {axis}", run, writes=True)


@family(weight=0.7)
def prelu(rng: random.Random, shape: Shape) -> Block:
    return layer(nn.PReLU(rng.choice((1, shape[0]))))


@family(weight=0.6)
def softmax(rng: random.Random, shape: Shape) -> Block:
    axis, kind = rng.randrange(1, len(shape) + 1), rng.choice((F.softmax, F.log_softmax))
    return call(f"{kind.__name__} along {axis}", lambda x: kind(x, dim=axis))


@family(weight=0.6)
def glu(rng: random.Random, shape: Shape) -> Block | None:
    axes = [axis for axis, size in enumerate(shape, 1) if size % 2 == 0]
    if not axes:
        return None
    axis = rng.choice(axes)
    return call(f"glu along {axis}", lambda x: F.glu(x, axis))
