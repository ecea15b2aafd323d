"""What masked units become beside values that no masking reaches, which may be zero themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from models import normal, randomize

WIDTH = 6


class Compared(nn.Module):
    """Units beside a number for each row that no masking reaches, but may be zero by itself."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.other, self.function = nn.Linear(4, WIDTH), nn.Linear(4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        found = self.function(self.first(x).relu(), self.other(x).relu())
        out: Tensor = found.to(x.dtype).sum(-1)
        return out


COMPARED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "eq": (torch.eq, False),
    "not unequal": (lambda h, g: h.ne(g).logical_not(), False),
    "power": (torch.pow, False),
    "times": (torch.mul, True),
    "over": (lambda h, g: h / g, True),
    "both": (lambda h, g: h.bool() & g.bool(), True),
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_stands_beside_the_units_may_be_zero(name: str) -> None:
    function, exact = COMPARED[name]
    program = fx.compile(randomize(Compared(function)).double(), (normal(2, 4).double(),))
    assert next(g.exact for g in program.groups if g.name.startswith("first")) == exact
