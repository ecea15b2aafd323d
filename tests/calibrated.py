"""Programs with data for statistics."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from fxcompress.program import Program
from fxcompress.task import Task

# float64, the same sums in another order
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def data(count: int, *shape: int, classes: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(classes, (count,), generator=generator)


def cut(pair: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(each.split(sizes) for each in pair), strict=True))


def program(name: str = "conv_chain", sizes: tuple[int, ...] = (5, 3)) -> Program:
    model, args, kwargs = models.build(name)
    batches = cut(data(sum(sizes), *args[0].shape[1:]), *sizes)
    return fx.compile(model, args, kwargs, task=Task(batches, F.cross_entropy))


def whole(found: Program) -> tuple[Tensor, Tensor]:
    assert found.task is not None
    inputs, labels = zip(*found.task.data, strict=True)
    return torch.cat(inputs), torch.cat(labels)
