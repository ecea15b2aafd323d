"""The reference of a selection that nothing mixes: the dense graph, unmodified, on parameters that
are zero at the units that leave.

Nothing else is masked, so it asks the operators themselves what they make of the zeros, where the
zero-masked run takes the word of the analysis. Which entries belong to a unit is read from the axes
and the plan; neither the masks nor the index sets of the rewriter are used. Each parameter is
zeroed when the graph reads it, so that there are never two models in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.coordinates import along, cell_numbers, coordinates, occurrences
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.axes.masks import clear
from fxcompress.edit.plan import Project
from fxcompress.edit.proof import Proof
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.interpret import Interpreter, flat_inputs
from fxcompress.graph.parameters import find_tensor, names_of
from fxcompress.graph.precision import doubled
from fxcompress.graph.state import copies, forked, isolated, written_tensors


def obstacle(coupling: Coupling, proof: Proof) -> str | None:
    """Why zeros in parameters are not the same as what the plan does, in words; None if they are.

    They are where units are only selected and nothing is known to mix along them: what mixes
    (a norm, a mean), or makes something of zeros that is summed, sees the units that left.
    """
    projects = proof.projects
    if not all(edit.selects for edit in projects):
        return "units are mixed"
    if proof.constants:
        return "constants are added"
    mixed = [e.group for e in projects if e.group.factor in coupling.inexact and not _keeps_all(e)]
    if not mixed:
        return None
    words = coupling.inexact[mixed[0].factor][0]
    return f"{len(mixed)} of {len(projects)} groups are not exact, such as {mixed[0]}: {words}"


@dataclass(frozen=True)
class ZeroedReference:
    """The dense graph with zeros in its parameters wherever a unit that leaves has an entry.

    Buffers and constants stay: they are numbers of the model's function.

    Attributes:
        old: The dense module, in evaluation mode; it is not changed.
        coupling: Its analysis.
        edits: What is done to each factor; they only select.
        values: What parameters and buffers are read as, before the zeros are put in.
    """

    old: CapturedModule
    coupling: Coupling
    edits: Mapping[Factor, Project]
    values: Mapping[str, Tensor]

    def __call__(
        self, new: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The outputs; the new program is not looked at."""
        with forked(self.old):
            flat = flat_inputs(self.old, copies(args), copies(dict(kwargs)))
            runner = _Zeroed(self)
            return self.old.graph.process_outputs(runner.run(*flat, enable_io_processing=False))

    def double(self, old: CapturedModule) -> ZeroedReference:
        """The same in double precision, on such a copy of the dense module."""
        values = {name: doubled(value) for name, value in self.values.items()}
        return replace(self, old=old, values=values)

    def zeroed(self, names: Iterable[str], value: Tensor) -> Tensor:
        """A copy of a parameter with zeros on the axes that it has under any of its names; the
        parameter itself where there are none.
        """
        axes = [
            self.coupling.parameters[name] for name in names if name in self.coupling.parameters
        ]
        masks = [~gone.to(value.device) for own in axes for gone in _gone(own, self.edits)]
        return clear(value, masks) if masks else value


def zeroed_reference(old: CapturedModule, coupling: Coupling, proof: Proof) -> ZeroedReference:
    """The reference of a plan for which there is no `obstacle`."""
    edits = {edit.group.factor: edit for edit in proof.projects}
    return ZeroedReference(old, coupling, edits, proof.reads)


class _Zeroed(Interpreter):
    """Runs the dense graph, which reads each parameter with its zeros."""

    def __init__(self, reference: ZeroedReference) -> None:
        self.written = written_tensors(reference.old)
        super().__init__(isolated(reference.old, self.written))
        self.reference = reference
        self.names = names_of(reference.old)
        self.kept: dict[frozenset[str], Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor):
            return value
        name, every = str(target), self.names[str(target)]
        if every in self.kept:
            return self.kept[every]
        found = self._read(name, value)
        if name in self.written:  # what a node writes to it, the next one reads
            self.kept[every] = found
        return found

    def _read(self, name: str, value: Tensor) -> Tensor:
        planned = self.reference.values.get(name, value)
        if name in self.written and planned is not value:
            planned = planned.clone()
        if not isinstance(find_tensor(self.reference.old, name), nn.Parameter):
            return planned
        return self.reference.zeroed(sorted(self.names[name]), planned)


def _keeps_all(edit: Project) -> bool:
    """Whether every unit stays, in its order."""
    every = torch.arange(edit.group.units, device=edit.encode.device)
    return edit.width == len(every) and bool((edit.encode == every).all())


def _gone(axes: Axes, edits: Mapping[Factor, Project]) -> Iterator[Tensor]:
    """For each factor, every time that it stands on an axis: a mask, broadcastable to a tensor of
    these axes, of the entries of units that leave.
    """
    for dim, expr in enumerate(axes):
        for factor in edits.keys() & set(leaves(expr)):
            edit = edits[factor]
            stays = nn.functional.one_hot(edit.encode.cpu(), edit.group.units).sum(-2).bool()
            cell = _cells(axes, dim, edit.encoder.over)
            for index in occurrences(expr, factor):
                at = along(index, dim, len(axes))
                unit = at.clamp(min=0)
                yield ~(stays[unit] if cell is None else stays[cell, unit]) & (at >= 0)


def _cells(axes: Axes, dim: int, over: Sequence[Factor]) -> Tensor | None:
    """The number of the cell at each place; None where all cells agree."""
    if not over:
        return None
    lines: dict[Factor, Tensor] = {}
    for factor in over:
        # The axis itself, where it holds the factor.
        place = min((d for d, e in enumerate(axes) if factor in leaves(e)), key=lambda d: d != dim)
        lines[factor] = along(coordinates(axes[place])[factor].clamp(min=0), place, len(axes))
    return cell_numbers(over, lines)
