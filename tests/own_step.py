"""A step as a user writes one: it changes the program, and keeps what it would not do twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import fxcompress as fx
from fxcompress.train import Context, Step


@dataclass(frozen=True, kw_only=True, repr=False)
class Shrink(Step):
    """Multiply every weight by a factor drawn from the seed."""

    least: float = 0.5

    def run(self, program: fx.Program, ctx: Context) -> fx.Program:
        draw = torch.Generator().manual_seed(ctx.seed)
        drawn = ctx.once("factor", lambda: {"it": torch.rand(1, generator=draw)})
        factor = self.least + (1 - self.least) * float(drawn["it"])
        ctx.note(f"every weight times {factor:.3g}")
        old = program.module.named_parameters()
        return program.with_values({name: value.detach() * factor for name, value in old})
