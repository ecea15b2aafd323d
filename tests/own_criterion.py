"""A criterion as a user writes one: which units matter, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.passes import Criterion


@dataclass(frozen=True, repr=False)
class EveryOther(fx.Recipe, Criterion):
    """Even units matter."""

    offset: int = 0

    def score(self, program: fx.Program, group: ChannelGroup) -> Tensor:
        score = (torch.arange(group.units) + self.offset) % 2
        return (1 - score).double().expand(group.cells, -1)
