"""Small nets for least squares."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from fxcompress.program import Program

# float64 through a few layers; λ_rel = 1e-12 leaves 1e-12 of the signal
close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-9)
EXACT = 1e-12


class Vision(nn.Module):
    """BatchNorm, GELU and a depthwise layer between producer and consumer; then a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.gelu(self.norm(self.first(x)))))
        x = F.avg_pool2d(F.relu(self.second(x)), 2)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "vision": (Vision, (32, 3, 4, 4)),
    "gated": (Gated, (64, 6)),
}


def made(name: str, duplicate: str = "") -> tuple[nn.Module, Tensor]:
    kind, shape = SHAPES[name]
    model = models.randomize(kind()).double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.ndim and duplicate and key.startswith(tuple(duplicate.split())):
                value[3] = value[1]  # unit 3 says what unit 1 says
    return model, x


def compiled(model: nn.Module, x: Any, **options: Any) -> Program:
    return fx.compile(model, (x,), task=[x], **options)
