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
from torch import Tensor, nn

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.axes.expressions import leaves
from fxcompress.graph.norms import batch_norms, input_norms
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.maps import LinearMap
from fxcompress.layers.units import units_on
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
    sites = sorted(group.sites, key=lambda site: site.role != "produce")
    presented = ((site, _layer(program, site)) for site in sites)
    made = [(site, layer) for site, layer in presented if layer is not None]
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


def _layer(program: Program, site: Site) -> _Layer | None:
    """What torch-pruning has for a site: a linear map, or the scale of one of two norms."""
    value = read_tensor(program.module, site.parameter)
    if site.role == "affine":
        return _norm(program, site, value)
    maps = (one for one in program.maps if one.weight == site.parameter and one.plain)
    one = next(maps, None) if site.role in ("produce", "contract") else None
    return None if one is None else _linear(program, site, value, one)


def _norm(program: Program, site: Site, value: Tensor) -> _Layer | None:
    """BatchNorm or LayerNorm, the norms whose scales torch-pruning looks at."""
    batch = next((n for n in batch_norms(program.module) if n.scale == site.parameter), None)
    layer = (n for n in input_norms(program.module) if n.last is not None and n.centred)
    norm = batch or next((n for n in layer if n.scale == site.parameter), None)
    if norm is None:
        return None
    kind = nn.LayerNorm if batch is None else nn.BatchNorm1d
    module = kind(len(value), device="meta")
    return _filled(program, module, site.parameter, value, lambda v: v, norm.shift)


def _linear(program: Program, site: Site, value: Tensor, one: LinearMap) -> _Layer:
    """A linear layer, or a convolution of a single pixel that has all entries as channels."""

    def arrange(v: Tensor) -> Tensor:
        rows = v.detach().movedim(site.dim, 0).flatten(1)
        rows = rows if site.role == "produce" else rows.mT
        return rows if v.dim() == 2 else rows[:, :, None, None]

    outputs, inputs = arrange(value).shape[:2]
    module = _map(value, one, site, inputs, outputs)
    bias = one.bias if site.role == "produce" else None
    return _filled(program, module, site.parameter, value, arrange, bias)


def _map(value: Tensor, one: LinearMap, site: Site, inputs: int, outputs: int) -> nn.Module:
    """An empty layer of these sizes.

    A depthwise one is presented as such: torch-pruning knows those as layers of another kind. None
    has memory of its own yet, nor draws values for it.
    """
    if value.dim() == 2:
        return nn.Linear(inputs, outputs, device="meta")
    size = value.shape[site.dim]
    depthwise = one.inputs == one.outputs == 1 and one.groups == size
    groups = size if depthwise and site.role == "produce" else 1
    return nn.Conv2d(size if groups > 1 else inputs, outputs, 1, groups=groups, device="meta")


def _filled(
    program: Program,
    module: Any,
    name: str,
    value: Tensor,
    arrange: Arrange,
    bias: str | None,
) -> _Layer:
    """Put our values into a layer; without a bias where there is none, or not of these units."""
    module.weight = nn.Parameter(arrange(value).clone())
    sources = [(module.weight, name, arrange)]
    if bias is None:
        module.bias = None
    else:
        module.bias = nn.Parameter(read_tensor(program.module, bias).clone())
        sources.append((module.bias, bias, lambda v: v.detach()))
    return _Layer(module, tuple(sources))


def _places(program: Program, group: ChannelGroup, site: Site) -> tuple[Tensor, Tensor]:
    """The places of an axis that hold units, ascending, and the number of the unit at each."""
    expr = program.analysis.axes(site.parameter)[site.dim]
    if not set(group.over) <= set(leaves(expr)):
        raise DeclinedError(
            group,
            f"the cells of axis {site.dim} of {site.parameter} are told by another axis, which "
            "torch-pruning has no group for",
        )
    index = units_on((expr,), 0, group.factor, group.over).index.flatten(2)
    places, order = index.flatten().sort()
    numbers = torch.arange(index[..., 0].numel()).repeat_interleave(index.shape[2])
    return places, numbers[order]


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
