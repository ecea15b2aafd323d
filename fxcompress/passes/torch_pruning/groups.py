"""Our channel groups as groups of torch-pruning, so that its importance classes can score them.

Every axis that holds the units becomes a small layer around (a copy of) the tensor, with the axis
in front: that library's importances look at a layer's type, its pruning function and its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.axes.coordinates import cell_numbers, coordinates
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import read_tensor
from fxcompress.graph.schema import arguments, packet_of
from fxcompress.passes.structured.method import DeclinedError
from fxcompress.program import Program

Arrange = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Presented:
    """A group as torch-pruning takes it.

    Attributes:
        group: Its own kind of group: items of a dependency and indices.
        layers: The layers around the tensors.
        sources: Where each parameter of a layer comes from: the name of ours, and how it is
            arranged there.
    """

    group: Any
    layers: nn.ModuleList
    sources: tuple[tuple[nn.Parameter, str, Arrange], ...]

    def set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Give every parameter the gradient of what it was made from."""
        for parameter, name, arrange in self.sources:
            parameter.grad = arrange(gradients[name]).to(parameter)


def present(tp: Any, program: Program, group: ChannelGroup) -> Presented:
    """Make torch-pruning's group of ours.

    Args:
        tp: The module ``torch_pruning``.
        program: Whose tensors.
        group: Producers, consumers and the scales of norms are presented; embeddings and other
            tables are not, since its importances leave them out.

    Raises:
        PlanError: Several places of a layer make one unit, which no group of its is like.
    """
    readers = _readers(program)
    sites = sorted(group.sites, key=lambda site: site.role != "produce")
    taken = [site for site in sites if _taken(site, readers)]
    made = [(site, _layer(program, site, readers[site.parameter])) for site in taken]
    found = tp.dependency.Group()
    for site, layer in made:
        places, units = _places(program, group, site)
        handler = _handler(tp, layer, site)
        node = tp.dependency.Node(layer.module, None, site.parameter)
        found.add_dep(tp.dependency.Dependency(handler, handler, node, node), places.tolist())
        found[-1].root_idxs = units.tolist()
    _check_root(found, group)
    layers = nn.ModuleList(layer.module for _, layer in made)
    return Presented(found, layers, tuple(s for _, layer in made for s in layer.sources))


@dataclass(frozen=True)
class _Layer:
    module: nn.Module
    sources: tuple[tuple[nn.Parameter, str, Arrange], ...]


def _readers(program: Program) -> dict[str, fx.Node]:
    """The node that uses each parameter as its weight."""
    found: dict[str, fx.Node] = {}
    for node in program.module.graph.nodes:
        name = parameter_of(arguments(node).get("weight")) if packet_of(node) else None
        if name is not None:
            found.setdefault(name, node)
    return found


def _taken(site: Site, readers: Mapping[str, fx.Node]) -> bool:
    """Whether torch-pruning has a layer for it: linear maps, and the scales of two norms."""
    if site.parameter not in readers:
        return False
    if site.role == "affine":
        return packet_of(readers[site.parameter]) in _NORMS
    return site.role in ("produce", "contract")


_NORMS: Mapping[str, type[nn.Module]] = {
    "aten::batch_norm": nn.BatchNorm1d,
    "aten::layer_norm": nn.LayerNorm,
}


def _layer(program: Program, site: Site, reader: fx.Node) -> _Layer:
    value = read_tensor(program.module, site.parameter)
    if site.role == "affine":
        module = _NORMS[packet_of(reader)](len(value), device="meta")
        return _filled(program, reader, module, site.parameter, value, lambda v: v)

    def arrange(v: Tensor) -> Tensor:
        rows = v.detach().movedim(site.dim, 0).flatten(1)
        rows = rows if site.role == "produce" else rows.mT
        return rows if v.dim() == 2 else rows[:, :, None, None]

    outputs, inputs = arrange(value).shape[:2]
    module = _map(value, reader, site, inputs, outputs)
    bias = site.role == "produce"
    return _filled(program, reader, module, site.parameter, value, arrange, bias)


def _map(value: Tensor, reader: fx.Node, site: Site, inputs: int, outputs: int) -> nn.Module:
    """A linear layer, or a convolution of a single pixel that has all entries as channels.

    A depthwise one is presented as such: torch-pruning knows those as layers of another kind. None
    has memory of its own yet, nor draws values for it.
    """
    if value.dim() == 2:
        return nn.Linear(inputs, outputs, device="meta")
    size = value.shape[site.dim]
    depthwise = value.shape[1] == 1 and arguments(reader).get("groups", 1) == size
    groups = size if depthwise and site.role == "produce" else 1
    return nn.Conv2d(size if groups > 1 else inputs, outputs, 1, groups=groups, device="meta")


def _filled(
    program: Program,
    reader: fx.Node,
    module: Any,
    name: str,
    value: Tensor,
    arrange: Arrange,
    bias: bool = True,
) -> _Layer:
    """Put our values into a layer; without a bias where there is none, or not of these units."""
    module.weight = nn.Parameter(arrange(value).clone())
    sources = [(module.weight, name, arrange)]
    shift = parameter_of(arguments(reader).get("bias")) if bias else None
    if shift is None:
        module.bias = None
    else:
        module.bias = nn.Parameter(read_tensor(program.module, shift).clone())
        sources.append((module.bias, shift, lambda v: v.detach()))
    return _Layer(module, tuple(sources))


def _places(program: Program, group: ChannelGroup, site: Site) -> tuple[Tensor, Tensor]:
    """The places of an axis that hold units, ascending, and the number of the unit at each."""
    at = coordinates(program.analysis.axes(site.parameter)[site.dim])
    if not set(group.over) <= at.keys():
        raise DeclinedError(
            group,
            f"the cells of axis {site.dim} of {site.parameter} are told by another axis, which "
            "torch-pruning has no group for",
        )
    places = torch.nonzero(at[group.factor] >= 0).flatten()
    cell = cell_numbers(group.over, {factor: at[factor][places] for factor in group.over})
    return places, cell * group.units + at[group.factor][places]


def _handler(tp: Any, layer: _Layer, site: Site) -> Any:
    box = tp.pruner.function.PrunerBox[tp.ops.module2type(layer.module)]
    return box.prune_in_channels if site.role == "contract" else box.prune_out_channels


def _check_root(found: Any, group: ChannelGroup) -> None:
    """Its importances size their result by the first layer."""
    if not len(found):
        raise DeclinedError(
            group, "it has no linear map and no norm that torch-pruning could score"
        )
    root, units = found[0], prod((group.cells, group.units))
    if len(root.idxs) != units:
        raise DeclinedError(
            group,
            f"it has {units} units of {len(root.idxs) // units} places each in "
            f"{root.dep.target.name}, and torch-pruning scores single places",
        )
