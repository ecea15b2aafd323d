"""A second proof of a selection: the dense graph, unmodified, on parameters that are zero at the
units that leave.

Nothing else is masked, so it asks the operators themselves what they make of the zeros, where the
zero-masked run takes the word of the analysis. Which entries belong to a unit is read from the axes
and the plan; neither the masks nor the index sets of the rewriter are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.coordinates import along, cell_numbers, coordinates, occurrences
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.edit.plan import Offset, Plan, Project
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.parameters import find_tensor, names_of, replace_tensor
from fxcompress.verify.values import planned_values


def obstacle(coupling: Coupling, plan: Plan) -> str | None:
    """Why zeros in parameters are not the same as what the plan does, in words; None if they are.

    They are where units are only selected and nothing is known to mix along them: what mixes
    (a norm, a mean), or makes something of zeros that is summed, sees the units that left.
    """
    projects = [edit for edit in plan.edits if isinstance(edit, Project)]
    if not all(edit.selects for edit in projects):
        return "units are mixed"
    if any(isinstance(edit, Offset) for edit in plan.edits):
        return "constants are added"
    mixed = [e.group for e in projects if e.group.factor in coupling.inexact and not _keeps_all(e)]
    if not mixed:
        return None
    words = coupling.inexact[mixed[0].factor][0]
    return f"{len(mixed)} of {len(projects)} groups are not exact, such as {mixed[0]}: {words}"


def zeroed_parameters(old: CapturedModule, coupling: Coupling, plan: Plan) -> CapturedModule:
    """The dense graph with zeros in its parameters wherever a unit that leaves has an entry.

    Buffers and constants stay: they are numbers of the model's function. The graph is the same, and
    every other tensor is shared.

    Args:
        old: The dense module; it is not changed.
        coupling: Its analysis.
        plan: Its projections only select; new values that it gives are put in first.
    """
    new, names = clone_graph(old), names_of(old)
    for name, value in planned_values(old, plan).items():
        replace_tensor(new, names, name, value)
    edits = {e.group.factor: e for e in plan.edits if isinstance(e, Project)}
    for name, axes in coupling.parameters.items():
        own, gone = find_tensor(new, name), _gone(axes, edits)
        if gone is not None and isinstance(own, nn.Parameter):
            zeros = own.detach().masked_fill(gone.to(own.device), 0)
            replace_tensor(new, names, name, zeros)
    return new


def _keeps_all(edit: Project) -> bool:
    """Whether every unit stays, in its order."""
    every = torch.arange(edit.group.units, device=edit.encode.device)
    return edit.width == len(every) and bool((edit.encode == every).all())


def _gone(axes: Axes, edits: Mapping[Factor, Project]) -> Tensor | None:
    """A mask, broadcastable to a tensor of these axes, of the entries of units that leave."""
    masks = list(_lines(axes, edits))
    return reduce(torch.logical_or, masks) if masks else None


def _lines(axes: Axes, edits: Mapping[Factor, Project]) -> Iterator[Tensor]:
    """The masks of each factor, for every time that it stands on an axis."""
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
