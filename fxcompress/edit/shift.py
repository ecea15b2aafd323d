"""Constants that consumers see beside the units they read, as offsets of these consumers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.coordinates import along, coordinates
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.edit.context import Context
from fxcompress.edit.offset import Offset
from fxcompress.errors import PlanError
from fxcompress.layers.maps import LinearMap


def offsets_of(context: Context, group: ChannelGroup, shift: Tensor) -> Iterator[Offset]:
    """V·shift for every linear map V that consumes the units of a group, each once.

    Args:
        context: Its weights are those that read the units before they change.
        group: The units.
        shift: What consumers see beside them, shape (units,).

    Raises:
        PlanError: Something reads the units that cannot take a constant, or would take it
            differently at the border of an image.
    """
    maps = {
        (one := _map(context, node, group)).weight: one
        for node in context.module.graph.nodes
        if _consumes(context.coupling, node, group.factor)
    }
    for name, one in maps.items():
        weight = context.value(name)
        dim = _contracted(context.coupling, name, group.factor)
        index = coordinates(context.coupling.parameters[name][dim])[group.factor]
        seen = torch.where(index < 0, 0, shift.cpu().double()[index]).to(weight.device)
        moved = one.matrix(weight.double() * along(seen, dim, weight.dim()))
        yield Offset(name, moved.sum(2).flatten().to(weight.dtype))


def _consumes(coupling: Coupling, node: fx.Node, factor: Factor) -> bool:
    """Whether a node reads a value of these units and gives one without them."""
    values = (one for one in node.all_input_nodes if one.op != "get_attr")
    reads = any(_holds(coupling, one, factor) for one in values)
    return reads and node.op != "output" and not _holds(coupling, node, factor)


def _holds(coupling: Coupling, node: fx.Node, factor: Factor) -> bool:
    several = coupling.outputs.get(node.name, ())
    tensors = (coupling.axes.get(node.name, ()), *several)
    return any(factor in leaves(expr) for axes in tensors for expr in axes)


def _contracted(coupling: Coupling, name: str, factor: Factor) -> int:
    found = [
        d
        for parameter, d, role in coupling.roles[factor]
        if (parameter, role) == (name, "contract")
    ]
    return found[0]


def _map(context: Context, node: fx.Node, group: ChannelGroup) -> LinearMap:
    """The linear map at a node that consumes the units."""
    where = f"group {group.name}: node '{node.name}' ({node.target})"
    found = [one for one in context.maps if one.node == node.name and one.addend is not None]
    if not found:
        raise PlanError(
            f"{where} reads the units and has no bias that could take a shift; "
            "give the projection without one"
        )
    window = found[0].window
    if window is not None and window.meets_zeros:
        raise PlanError(
            f"{where} pads with zeros by {list(window.before)}, so a shift would be wrong at the "
            "border; give the projection without one"
        )
    return found[0]
