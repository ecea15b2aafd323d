"""A program run stage by stage on all its data, beside another version of it.

Activations at the boundary of what has been run are kept for all batches, and freed where no later
stage reads them. So what a layer gets from compressed layers before it is known for the cost of the
stage between them, and every stage is run once, on what the stages before it give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxcompress.arguments import Checked, Count
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.interpret import flat_inputs
from fxcompress.graph.state import copies, forked
from fxcompress.program import Program
from fxcompress.stats.data import require_data, samples_of
from fxcompress.stats.observe import check_nodes, check_repeats
from fxcompress.stats.running import runner, tensors_of
from fxcompress.stats.stages import Stages, State
from fxcompress.stats.statistic import Statistic
from fxcompress.train.batches import call


@dataclass(frozen=True, eq=False)
class Wanted(Checked):
    """A statistic of what a node gives.

    Attributes:
        value: The node's name.
        statistic: Updated with the value of the node in every batch.
        paired: Updated instead with two values: what the node gives in the program, and what it
            gives in the compressed version.
    """

    value: str
    statistic: Statistic[Any]
    paired: bool = False


class _Stream:
    """One version of the program, with its state for every batch before the node `at`.

    Attributes:
        start: The number of that node, from which the next run starts.
        halt: Before which node the next run leaves its states.
        stop: Before which node it ends.
    """

    def __init__(self, stages: Stages, states: list[State], at: str | None = None) -> None:
        self.stages, self.states, self.at = stages, states, at
        self.start = self.halt = self.stop = 0

    @classmethod
    def begun(cls, stages: Stages, inputs: Sequence[list[Any]]) -> _Stream:
        """Before the first node."""
        return cls(stages, [stages.begin(list(each)) for each in inputs])

    def moved(self, stages: Stages) -> _Stream | None:
        """The same states for another version; None where it differs before them."""
        if self.at is None or stages.continues(self.stages, self.at):
            return _Stream(stages, self.states, self.at)
        return None

    def forked(self, stages: Stages) -> _Stream | None:
        """Another version that starts from copies of the states; None where it differs before."""
        moved = self.moved(stages)
        if moved is None:
            return None
        start = 0 if self.at is None else stages.numbers[self.at]
        states = [stages.apart(state, start) for state in self.states]
        return _Stream(stages, states, self.at)

    def reaches(self, names: Collection[str]) -> bool:
        """Whether all values are still to come, or kept; and if so, the next run is for them."""
        stages = self.stages
        self.start = 0 if self.at is None else stages.numbers[self.at]
        numbers = [stages.numbers[name] for name in names]
        after = [min(stages.readers(name), default=stages.numbers[name] + 1) for name in names]
        self.halt = min(max(self.start, min(after)), len(stages.nodes) - 1)
        self.stop = max(self.halt, *(number + 1 for number in numbers))
        return all(
            number >= self.start or stages.kept(self.states[0], name, self.start)
            for number, name in zip(numbers, names, strict=True)
        )

    def run(self, batch: int, names: Collection[str]) -> dict[str, Any]:
        """Run one batch, and give the values of nodes."""
        state, stages = self.states[batch], self.stages
        found: dict[str, Any] = {}

        def see(name: str, value: Any) -> None:
            if name in names:
                found[name] = value.clone() if name in stages.overwritten else value

        for name in names:
            if stages.numbers[name] < self.start:
                see(name, state.values[name])
        self.states[batch] = stages.run(state, self.start, self.halt, self.stop, see)
        return found

    def arrive(self) -> None:
        """All batches have been run."""
        self.at = self.stages.nodes[self.halt].name


class Walk:
    """Takes a program, and another version of it, from stage to stage.

    Any order of stages is right; the one of the graph is cheapest, where each node is run once. For
    a value before the boundary, or where the other version has changed before it, a version starts
    again from the inputs.

    Attributes:
        nodes: How many nodes have been run so far, over batches and versions.
        samples: How many samples the data had; 0 before they are read.
    """

    def __init__(
        self,
        program: Program,
        values: Collection[str],
        *,
        who: str = "calibration",
        samples: Count | None = None,
    ) -> None:
        """Nothing is read or run yet.

        Args:
            program: Run in evaluation mode on its task's data.
            values: The names of all nodes whose values may be asked for.
            who: The method that asks, for messages.
            samples: How many samples at most; None for all.

        Raises:
            PlanError: There are no data, or the program has no such node.
        """
        require_data(program, who)
        check_nodes(program, values, who)
        self.program, self.values, self.who, self.limit = program, frozenset(values), who, samples
        self.nodes = self.samples = 0
        self._inputs: list[list[Any]] = []
        self._dense: _Stream | None = None
        self._other: _Stream | None = None

    def see(self, wanted: Sequence[Wanted], module: CapturedModule | None = None) -> None:
        """Update statistics over all the data.

        Args:
            wanted: What to update. Layers that read these values may be changed afterwards.
            module: The other version, with the same nodes by name; None where it is still the
                program itself.

        Raises:
            PlanError: The data cannot be read to their end, or the program gives another output
                for the same batch.
        """
        names = {one.value for one in wanted}
        paired = {one.value for one in wanted if one.paired}
        if not names:
            return
        with torch.no_grad(), forked(self.program.module):
            self._other = None if module is None else self._version(module)
            runs, sought = [self._aimed(self._base(), names)], [names]
            if self._other is not None and paired:
                runs.append(self._aimed(self._other, paired))
                sought.append(paired)
            for batch in range(len(self._inputs)):
                found = [stream.run(batch, own) for stream, own in zip(runs, sought, strict=True)]
                _update(wanted, found[0], found[-1])
                self.nodes += sum(stream.stop - stream.start for stream in runs)
            for stream in runs:
                stream.arrive()

    @property
    def held(self) -> int:
        """Bytes of activations that are kept between stages, of all batches and both versions."""
        streams = [stream for stream in (self._dense, self._other) if stream is not None]
        states = [state for stream in streams for state in stream.states]
        found = (value.untyped_storage() for value in tensors_of([s.values for s in states]))
        memory = {each.data_ptr(): each.nbytes() for each in found}
        return sum(memory.values())

    def _base(self) -> _Stream:
        """The program itself."""
        if self._dense is None:
            self._inputs = self._read()
            self._dense = _Stream.begun(Stages(self.program.module, self.values), self._inputs)
        return self._dense

    def _version(self, module: CapturedModule) -> _Stream:
        """The other version, as far as it has come: from where it was, or where the program is."""
        stages, base = Stages(module, self.values), self._base()
        if self._other is not None and (moved := self._other.moved(stages)) is not None:
            return moved
        return base.forked(stages) or _Stream.begun(stages, self._inputs)

    def _aimed(self, stream: _Stream, names: Collection[str]) -> _Stream:
        """A stream that reaches all values in its next run, if it has to begin again."""
        if not stream.reaches(names):
            stream.states, stream.at = _Stream.begun(stream.stages, self._inputs).states, None
            stream.reaches(names)
        return stream

    def _read(self) -> list[list[Any]]:
        """The values of the placeholders in every call that the task makes of the module."""
        task, found = require_data(self.program, self.who), list[list[Any]]()
        module: Any = runner(self.program.module)
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            found.append(flat_inputs(self.program.module, copies(args), copies(kwargs)))
            return None if task.forward is None else inner(*args, **kwargs)

        module.forward = forward
        for inputs, _, size in samples_of(self.program, self.who, limit=self.limit):
            if not found:
                check_repeats(self.program, inputs, self.who)
            call(module, task, inputs)
            self.samples += size
        return found


def _update(wanted: Sequence[Wanted], found: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for one in wanted:
        value = found[one.value]
        one.statistic.update((value, other[one.value]) if one.paired else value)
