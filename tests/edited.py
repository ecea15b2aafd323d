"""Passes whose edits are made by hand, and programs for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.program import Program


@dataclass(frozen=True)
class Just:
    """A pass with a plan made by hand."""

    edits: Any = field(repr=False)

    def plan(self, program: Program) -> fx.Plan:
        return fx.Plan(tuple(self.edits(program)))


def linear_chain() -> tuple[nn.Sequential, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)).double()
    return net, (torch.randn(4, 5, dtype=torch.float64),)
