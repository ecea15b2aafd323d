"""Functions that make something of zeros, read by no weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTH = 6


class Read(nn.Module):
    """A layer, a function, and a sum that no weight shields."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(4, WIDTH), function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(self.first(x)).sum(-1)
        return out


MAKES_SOMETHING: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh": lambda h: F.hardtanh(h, 0.5, 2.0),
    "clamp": lambda h: h.clamp(min=1.0),
    "threshold": lambda h: F.threshold(h, 0.5, 3.0),
    "cos": torch.cos,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "number": lambda h: h + 1.0,
    "constant": lambda h: h + torch.ones(WIDTH, dtype=h.dtype),
    "power": lambda h: h**0,
    "where": lambda h: torch.where(h > 0, h, torch.full_like(h, 2.0)),
    "division": lambda h: 1.0 / (h + 2.0),
}
