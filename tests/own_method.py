"""A structured method as a user writes one: its options, its scores, its reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Edit
from fxcompress.passes import Reconstruction, Structured
from fxcompress.passes.structured.scores import members_of, weights_of


@dataclass(frozen=True, kw_only=True, repr=False)
class SpreadPruning(Structured, Reconstruction):
    """Keep the units whose weights spread most."""

    power: Literal[1, 2] = 1

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self

    def declines(self, program: fx.Program, group: ChannelGroup) -> str | None:
        return None if members_of(group, ("produce",)) else "nothing produces it"

    def score(self, program: fx.Program, group: ChannelGroup) -> Tensor:
        first = members_of(group, ("produce",))[0]
        return weights_of(program, group, first).std(-1, correction=0) ** self.power

    def edits(self, program: fx.Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return (fx.Project(group, kept),)
