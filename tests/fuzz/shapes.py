"""Families that move, cut, merge and reduce axes, and those that join two tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fuzz.activations import Pointwise
from fuzz.blocks import Block, Shape, call, divisors, family, normal


@family(3, weight=1.5)
def pooling(rng: random.Random, shape: Shape) -> Block | None:
    if min(shape[1:]) < 2:
        return None
    kinds: dict[str, Pointwise] = {
        "max_pool": lambda x: F.max_pool2d(x, 2),
        "avg_pool": lambda x: F.avg_pool2d(x, 2),
        "adaptive_avg": lambda x: F.adaptive_avg_pool2d(x, 2),
        "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 2),
        "lp_pool": lambda x: F.lp_pool2d(x, 2.0, 2),
        "avg_pool_pad": lambda x: F.avg_pool2d(x, 3, 1, 1),
    }
    name = rng.choice(sorted(kinds))
    return call(name, kinds[name])


@family(3, weight=0.7)
def resize(rng: random.Random, shape: Shape) -> Block | None:
    if max(shape[1:]) > 8:
        return None
    mode = rng.choice(("nearest", "bilinear"))
    return call(f"upsample {mode}", lambda x: F.interpolate(x, scale_factor=2, mode=mode))


@family(3, weight=0.7)
def pixel_shuffle(rng: random.Random, shape: Shape) -> Block | None:
    if shape[0] % 4 == 0 and max(shape[1:]) < 8:
        return call("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2))
    if all(size % 2 == 0 for size in shape[1:]):
        return call("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2))
    return None


@family(3, weight=0.7)
def channel_shuffle(rng: random.Random, shape: Shape) -> Block:
    groups = rng.choice(divisors(shape[0]))
    return call(f"channel_shuffle({groups})", lambda x: F.channel_shuffle(x, groups))


@family(weight=0.7)
def padding(rng: random.Random, shape: Shape) -> Block:
    value = rng.choice((0.0, 0.0, 0.5))
    axes = rng.randrange(1, len(shape) + 1)
    sizes = [rng.choice((0, 1)) for _ in range(2 * axes)]
    return call(f"pad {sizes} by {value}", lambda x: F.pad(x, sizes, value=value))


@family(weight=1)
def cut(rng: random.Random, shape: Shape) -> Block | None:
    axis = rng.randrange(1, len(shape) + 1)
    size = shape[axis - 1]
    if size < 2:
        return None
    start, step = rng.randrange(size // 2), rng.choice((1, 1, 2))
    slices = (slice(None),) * axis + (slice(start, None, step),)
    return call(f"[{start}::{step}] along {axis}", lambda x: x[slices])


@family(weight=0.7)
def reordered(rng: random.Random, shape: Shape) -> Block:
    axis = rng.randrange(1, len(shape) + 1)
    size = shape[axis - 1]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(rng.getrandbits(31)))
    kinds: dict[str, Pointwise] = {
        "flip": lambda x: x.flip(axis),
        "roll": lambda x: x.roll(1, axis),
    }
    name = rng.choice(("flip", "roll", "index_select"))
    if name in kinds:
        return call(f"{name} along {axis}", kinds[name])
    return Block(
        f"index_select along {axis}",
        lambda b, x: x.index_select(axis, b.order),
        buffers={"order": order},
    )


@family(weight=1)
def reshaped(rng: random.Random, shape: Shape) -> Block | None:
    """Two axes become one, or one becomes two."""
    axis = rng.randrange(1, len(shape) + 1)
    if len(shape) > 1 and rng.random() < 0.5 and axis < len(shape):
        return call(f"flatten({axis}, {axis + 1})", lambda x: x.flatten(axis, axis + 1))
    factors = [n for n in divisors(shape[axis - 1]) if 1 < n < shape[axis - 1]]
    if len(shape) > 3 or not factors:
        return None
    inner = rng.choice(factors)
    return call(f"unflatten({axis}, ({inner}, -1))", lambda x: x.unflatten(axis, (inner, -1)))


@family(2, 3, 4, weight=1)
def permuted(rng: random.Random, shape: Shape) -> Block:
    order = list(range(1, len(shape) + 1))
    rng.shuffle(order)
    if rng.random() < 0.5:
        return call(f"permute {order}", lambda x: x.permute(0, *order))
    return call(f"permute {order}, contiguous", lambda x: x.permute(0, *order).contiguous())


@family(2, 3, 4, weight=1)
def reduced(rng: random.Random, shape: Shape) -> Block:
    axis, keep = rng.randrange(1, len(shape) + 1), rng.random() < 0.3
    kinds: dict[str, Callable[..., Tensor]] = {
        "mean": torch.mean,
        "sum": torch.sum,
        "amax": torch.amax,
        "logsumexp": torch.logsumexp,
        "norm": lambda x, dim, keepdim: torch.linalg.vector_norm(x, 2, dim, keepdim),
        "std": lambda x, dim, keepdim: x.var(dim, correction=0, keepdim=keepdim),
        "prod_free_max": lambda x, dim, keepdim: x.max(dim, keepdim=keepdim).values,
    }
    name = rng.choice(sorted(kinds))
    return call(f"{name} over {axis}", lambda x: kinds[name](x, dim=axis, keepdim=keep))


@family(weight=0.6)
def scanned(rng: random.Random, shape: Shape) -> Block:
    axis = rng.randrange(1, len(shape) + 1)
    kind = rng.choice(("cumsum", "sort", "normalize"))
    kinds: dict[str, Pointwise] = {
        "cumsum": lambda x: x.cumsum(axis),
        "sort": lambda x: x.sort(axis).values,
        "normalize": lambda x: F.normalize(x, dim=axis),
    }
    return call(f"{kind} along {axis}", kinds[kind])


@family(weight=1.2)
def pieces(rng: random.Random, shape: Shape) -> Block | None:
    """Pieces of an axis, each treated in a way of its own, put together again."""
    axes = [axis for axis, size in enumerate(shape, 1) if size % 2 == 0]
    if not axes:
        return None
    axis, kind = rng.choice(axes), rng.choice(("cat", "swap", "sum", "product", "stack"))
    cut_up = rng.choice((torch.chunk, torch.tensor_split))

    def run(x: Tensor) -> Tensor:
        left, right = cut_up(x, 2, axis)
        if kind == "cat":
            return torch.cat((torch.relu(left), torch.tanh(right)), axis)
        if kind == "swap":
            return torch.cat((right, left * 2), axis)
        if kind == "stack":
            return torch.stack((left, right), 1).sum(1)
        return left + right if kind == "sum" else left * torch.sigmoid(right)

    return call(f"{cut_up.__name__} along {axis}, {kind}", run)


@family(weight=0.5)
def constant_buffer(rng: random.Random, shape: Shape) -> Block:
    """A buffer that is added, or multiplied by, along the last axis."""
    values = normal(rng, shape[-1])
    if rng.random() < 0.5:
        return Block("x + buffer", lambda b, x: x + b.values, buffers={"values": values})
    return Block("x * buffer", lambda b, x: x * b.values, buffers={"values": values})


@family(weight=0.5)
def running(rng: random.Random, shape: Shape) -> Block:
    """A moving average that the forward pass itself updates."""

    def run(b: Any, x: Tensor) -> Any:
        b.average.mul_(0.9).add_(0.1 * x.detach().mean())
        return x * (1 + 0.1 * b.average)

    return Block("moving average", run, buffers={"average": torch.ones(())})


# ---- two operands of one shape


@family(arity=2, weight=4)
def added(rng: random.Random, shape: Shape, _: Shape) -> Block:
    return call("a + b", torch.add)


@family(arity=2, weight=1.5)
def combined(rng: random.Random, shape: Shape, _: Shape) -> Block:
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "a * b": torch.mul,
        "a - b": torch.sub,
        "maximum": torch.maximum,
        "a * sigmoid(b)": lambda a, b: a * torch.sigmoid(b),
        "lerp": lambda a, b: torch.lerp(a, b, 0.3),
        "addcmul": lambda a, b: torch.addcmul(a, a, b),
        "where": lambda a, b: torch.where(a > b, a, b * 0.5),
        "a / (1 + |b|)": lambda a, b: a / (1 + b.abs()),
    }
    name = rng.choice(sorted(kinds))
    return call(name, kinds[name])


@family(arity=2, weight=2)
def concatenated(rng: random.Random, shape: Shape, _: Shape) -> Block | None:
    axis = rng.choice((1, len(shape)))
    if shape[axis - 1] > 16:
        return None
    return call(f"cat along {axis}", lambda a, b: torch.cat((a, b), axis))


@family(arity=2, weight=0.7)
def stacked(rng: random.Random, shape: Shape, _: Shape) -> Block | None:
    if len(shape) > 2:
        return None
    axis = rng.randrange(1, len(shape) + 2)
    return call(f"stack along {axis}", lambda a, b: torch.stack((a, b), axis))


@family(arity=2, weight=0.7)
def added_in_place(rng: random.Random, shape: Shape, _: Shape) -> Block:
    return call("a.add_(b)", lambda a, b: a.add_(b), writes=True)


@family(2, arity=2, weight=1)
def contracted(rng: random.Random, shape: Shape, _: Shape) -> Block:
    """Two operands meet in an inner product, and no weight stands between."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "a @ b'": lambda a, b: a @ b.transpose(1, 2),
        "a' @ b": lambda a, b: a.transpose(1, 2) @ b,
        "cdist": lambda a, b: torch.cdist(a, b + 0.01),
        "cosine": lambda a, b: F.cosine_similarity(a, b, dim=-1),
    }
    name = rng.choice(sorted(kinds))
    return call(name, kinds[name])
