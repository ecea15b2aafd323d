"""What layers get on the data: the moments of the inputs that a group's units are.

Either all is known from one forward pass, or the layers are gone through in order, each beside what
it gets from those that were refitted before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Edit, Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.program import Program
from fxcompress.stats import Grams, Moments, Paired, Read, UnitMoments, UnitPairs, Walk, Wanted

Reads = Mapping[ChannelGroup, Sequence[Read]]
Found = Mapping[Read, Moments]
Pairs = Mapping[Read, Paired]


class Inputs(Protocol):
    """What the layers that read a group get."""

    def before(self, group: ChannelGroup, edits: Sequence[Edit]) -> Found:
        """Moments in the program as it was; `edits` are what has been decided so far."""

    def after(self, group: ChannelGroup, edits: Sequence[Edit]) -> Pairs:
        """Moments beside those of the program with `edits`; none where nothing is different."""

    def done(self, group: ChannelGroup) -> None:
        """The group has been dealt with."""


class Gathered(Inputs):
    """From one pass over the program as it was, which stands for what it becomes as well."""

    def __init__(self, moments: Mapping[ChannelGroup, Moments]) -> None:
        self.moments = moments

    def before(self, group: ChannelGroup, edits: Sequence[Edit]) -> Found:
        return self.moments[group].each

    def after(self, group: ChannelGroup, edits: Sequence[Edit]) -> Pairs:
        return {}

    def done(self, group: ChannelGroup) -> None:
        """All that is known may be asked for again."""


class InOrder(Inputs):
    """Stage by stage, the program beside what the edits so far make of it."""

    def __init__(
        self,
        program: Program,
        reads: Reads,
        kinds: Mapping[ChannelGroup, Grams],
        who: str,
        samples: int | None,
    ) -> None:
        self.program, self.reads, self.kinds, self.who = program, reads, kinds, who
        values = {read.value for own in reads.values() for read in own}
        self.walk = Walk(program, values, who=who, samples=samples)
        self.found: dict[ChannelGroup, Found] = {}
        self.pairs: dict[ChannelGroup, tuple[tuple[Edit, ...], Pairs]] = {}

    def before(self, group: ChannelGroup, edits: Sequence[Edit]) -> Found:
        if group not in self.found:
            self._see(group, edits, alone=True)
        return self.found[group]

    def after(self, group: ChannelGroup, edits: Sequence[Edit]) -> Pairs:
        if not edits:
            return {}
        if group not in self.pairs or self.pairs[group][0] != tuple(edits):
            self._see(group, edits, alone=False)
        return self.pairs[group][1]

    def done(self, group: ChannelGroup) -> None:
        self.found.pop(group, None)
        self.pairs.pop(group, None)

    def _see(self, group: ChannelGroup, edits: Sequence[Edit], alone: bool) -> None:
        """One stage: pairs where anything is different, and `alone` the moments of the program."""
        kind, reads = self.kinds[group], self.reads[group]
        single = {r: UnitMoments(self.program, group, r, kind, self.who) for r in reads if alone}
        pairs = {read: UnitPairs(self.program, group, read, kind) for read in reads if edits}
        wanted = [Wanted(read.value, one) for read, one in single.items()]
        wanted += [Wanted(read.value, one, paired=True) for read, one in pairs.items()]
        coupling = self.program.analysis.coupling
        now = rewrite(self.program.module, coupling, Plan(tuple(edits))).module if edits else None
        self.walk.see(wanted, now)
        if alone:
            self.found[group] = {read: one.moments() for read, one in single.items()}
        if edits:
            self.pairs[group] = tuple(edits), {read: one.means for read, one in pairs.items()}
