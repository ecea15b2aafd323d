"""A pass for tests of the core: keep units drawn at random, without budget or rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Plan, Project
from fxcompress.program import Program


@dataclass(frozen=True)
class RandomSelection:
    """Keep a random share of the units of every group that may shrink, cell by cell."""

    seed: int = 0
    share: float = 0.5
    exact_only: bool = False

    def plan(self, program: Program) -> Plan:
        generator = torch.Generator().manual_seed(self.seed)
        chosen = [g for g in program.groups if not g.frozen and (g.exact or not self.exact_only)]
        return Plan(tuple(Project(group, self._keep(group, generator)) for group in chosen))

    def _keep(self, group: ChannelGroup, generator: torch.Generator) -> Tensor:
        count = max(1, round(group.units * self.share))
        rows = [
            torch.randperm(group.units, generator=generator)[:count] for _ in range(group.cells)
        ]
        index = torch.stack(rows).sort(1).values
        return index if group.cells > 1 else index[0]


def zero_masked(model: nn.Module, program: Program) -> nn.Module:
    """The user's own model with every entry zero that `program.kept` does not keep, in place."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, kept in program.kept.items():
            if name not in tensors:
                continue  # a constant of the graph
            for dim, index in enumerate(kept):
                if index is not None:
                    gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
                    gone[index] = False
                    tensors[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return model
