"""Groups that may change, and a net whose layers look alike."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.program import Program
from programs import PRUNABLE

ALLOCATION = st.sampled_from(["uniform", "global"])
NET = st.sampled_from(PRUNABLE)


def movable(found: Program) -> list[ChannelGroup]:
    return [group for group in found.groups if not group.frozen and group.units > 1]


class Blocks(nn.Module):
    """Three blocks that look alike, then one of another size."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (16, 16, 16, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def blocks() -> Program:
    net = Blocks()
    with torch.no_grad():  # the second block matters least
        net.blocks[1][0].weight.mul_(0.3)  # type: ignore[index]
    return fx.compile(net, (torch.randn(2, 6),))
