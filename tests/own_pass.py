"""A pass as a user writes one: its fields say what it takes."""

from __future__ import annotations

from dataclasses import dataclass

import fxcompress as fx
from fxcompress.arguments import Share
from fxcompress.budget import Recipe


@dataclass(frozen=True, kw_only=True, repr=False)
class OwnPass(Recipe):
    """Does nothing to a share of the model."""

    share: Share = 0.5

    def plan(self, program: fx.Program) -> fx.Plan:
        return fx.Plan(())
