"""Random pruning: the baseline that every criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Seed
from fxcompress.passes.structured.method import Structured
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class RandomPruning(Structured, alias="Uniform"):
    """Keep units at random.

    Scores are drawn from [0, 1): of one seed and group always the same, whatever else is drawn.

    Attributes:
        seed: Which ones; None takes the seed of the program.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    seed: Seed | None = None

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        seed = program.seed if self.seed is None else self.seed
        digest = hashlib.sha256(f"{seed} {group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(group.cells, group.units, generator=generator, dtype=torch.float64)


Uniform = RandomPruning
"""The name it has as a criterion."""
