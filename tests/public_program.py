"""A program that every public function takes, with its task."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import fxcompress as fx


class Net(nn.Module):
    """Convolutions with BatchNorm, a LayerNorm, linear layers: something for every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.mid, self.layer_norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(x)).relu().mean((2, 3))
        out: Tensor = self.head(self.layer_norm(self.mid(x)).relu())
        return out


def images() -> Tensor:
    return torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)


def task() -> fx.Task:
    batch = images(), torch.tensor([0, 2])
    return fx.Task([batch, batch], nn.functional.cross_entropy, _accuracy)


def _accuracy(output: Tensor, labels: Tensor) -> float:
    return float((output.argmax(1) == labels).float().mean())


@cache
def program() -> fx.Program:
    """It is never changed."""
    torch.manual_seed(0)
    return fx.compile(Net().eval(), (images(),), task=task())
