"""Optimal brain surgeon with Kronecker factors: whole units go, and the others make up for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.arguments import Count, Positive
from fxcompress.axes.coordinates import along
from fxcompress.axes.expressions import leaves
from fxcompress.edit.plan import Edit, Project, Replace
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.maps import LinearMap
from fxcompress.layers.units import units_on
from fxcompress.layers.weights import producers
from fxcompress.passes.kron_obs.factors import (
    Factors,
    factors_of,
    has_factors,
    row_losses,
    rows_removed,
    with_drawn_labels,
)
from fxcompress.passes.structured.method import (
    SELECTION,
    Criterion,
    DeclinedError,
    Reconstruction,
    Structured,
    refusal,
)
from fxcompress.passes.structured.scores import Normaliser, normalised
from fxcompress.program import Program

WHO = "Kron-OBS"
Labels = Literal["drawn", "data"]


@dataclass(frozen=True, kw_only=True, repr=False)
class KronOBSPruning(Structured, Reconstruction, alias="KroneckerSurgeon"):
    """Keep the units whose loss the others can make up for least, and let them make up for it.

    A unit scores how much the loss rises without its rows, the other rows making up for it. For
    each layer W that produces the units, with the factors A and G of its Fisher information, that
    is ½ wᵢᵀ A wᵢ / [G⁻¹]ᵢᵢ, summed over the layers (Kron-OBS: Wang et al., ICML 2019, eq. 7). As a
    reconstruction, W_K becomes W_K + G_KK⁻¹ G_KP W_P for the units K that stay and P that go. A
    unit of several rows is scored by their sum.

    The layers are expanded as they are: what a BatchNorm adds after them goes with the unit, and is
    not counted. Linear layers and plain 2-d convolutions have factors; tables and depthwise layers
    are left out. Needs data, labels (or logits to draw them from) and a loss.

    Attributes:
        labels: ``drawn`` from the program's own softmax, for the Fisher information; or those of
            the ``data``.
        damping: Share of their mean diagonal that is added to both factors.
        normaliser: What makes the scores of groups comparable, for global budgets.
        samples: How many samples of the program's data are looked at; None for all.
        update: Whether the rows that stay make up for those that go.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    labels: Labels = "drawn"
    damping: Positive = 1e-3
    normaliser: Normaliser = "none"
    samples: Count | None = None
    update: bool = True

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self if self.update else SELECTION

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Surgeon:
        """Accumulate the factors of all layers in one pass over the data.

        Raises:
            PlanError: As `factors_of`, or nothing that has factors produces a group.
        """
        layers = [layer for group in groups for layer in _layers(program, group)]
        maps = dict.fromkeys(one for layer in layers for one in layer.maps)
        drawn = self.labels == "drawn"
        shown = with_drawn_labels(program, WHO, self.samples) if drawn else program
        found = factors_of(shown, maps, WHO, self.samples)
        return Surgeon(self, {name: each.damped(self.damping) for name, each in found.items()})

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        return refusal(lambda: [_units(program, group, one) for one in _layers(program, group)])

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(frozen=True, eq=False)
class Surgeon(Criterion, Reconstruction):
    """Damped factors by the name of the weight."""

    recipe: KronOBSPruning
    factors: Mapping[str, Factors]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        total = torch.zeros(group.cells * group.units, dtype=torch.float64)
        for one in _layers(program, group):
            losses = row_losses(_matrix(program, one), self.factors[one.weight]).cpu()
            units = _units(program, group, one)
            total.index_add_(0, units[units >= 0], losses[units >= 0])
        score = total.reshape(group.cells, group.units)
        return normalised(score, self.recipe.normaliser)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        stays = torch.zeros(group.cells, group.units, dtype=torch.bool)
        stays.scatter_(1, kept.cpu().reshape(-1, kept.shape[-1]).expand(group.cells, -1), True)
        gone = ~stays.flatten()
        found: dict[str, Edit] = {}
        for one in _layers(program, group):
            units = _units(program, group, one)
            rows = (units >= 0) & gone[units.clamp(min=0)]
            matrix = _matrix(program, one)
            new = rows_removed(matrix, self.factors[one.weight], rows.to(matrix.device))
            found |= _replaced(program, one, new)
        return (*found.values(), Project(group, kept))


@dataclass(frozen=True)
class _Layer:
    """A weight with rows for the units.

    Attributes:
        maps: All that is done with it.
        site: The axis of the weight that holds the units.
    """

    maps: tuple[LinearMap, ...]
    site: Site

    @property
    def weight(self) -> str:
        return self.maps[0].weight

    @property
    def bias(self) -> str | None:
        return self.maps[0].bias


def _layers(program: Program, group: ChannelGroup) -> list[_Layer]:
    """The layers with rows for the units, each once."""
    own = {
        one.weight: one.site
        for one in producers(program, group)
        if one.site.role == "produce" and not one.filters
    }
    if not own:
        raise DeclinedError(group, "no layer with a row for each unit produces it")
    found = {name: [one for one in program.maps if one.weight == name] for name in own}
    for name, maps in found.items():
        odd = next((one for one in maps if not has_factors(one)), None)
        if odd is not None or not maps:
            where = f"'{odd.node}'" if odd else name
            raise DeclinedError(
                group,
                f"{where} has no Kronecker factors; only linear layers and convolutions in one "
                "group do",
            )
    return [_Layer(tuple(found[name]), site) for name, site in own.items()]


def _matrix(program: Program, one: _Layer) -> Tensor:
    """The weight with one row for each output, and a last column for its bias."""
    weight = one.maps[0].matrix(_value(program, one.weight))[0]
    if one.bias is None:
        return weight
    return torch.cat([weight, _value(program, one.bias)[:, None]], 1)


def _replaced(program: Program, one: _Layer, matrix: Tensor) -> dict[str, Edit]:
    old, own = read_tensor(program.module, one.weight), one.maps[0]
    columns = own.inputs * own.taps
    weight = own.entries(matrix[None, :, :columns])
    edits: dict[str, Edit] = {one.weight: Replace(one.weight, weight.to(old))}
    if one.bias is not None:
        edits[one.bias] = Replace(one.bias, matrix[:, columns].to(old))
    return edits


def _units(program: Program, group: ChannelGroup, one: _Layer) -> Tensor:
    """The number of the unit at each row of a layer; -1 where there is none of the group."""
    axes, dim = program.analysis.axes(one.weight), one.site.dim
    if not set(group.over) <= set(leaves(axes[dim])):
        raise DeclinedError(group, f"its cells are not told by the rows of {one.weight}")
    units = units_on((axes[dim],), 0, group.factor, group.over)
    numbers = torch.arange(group.cells * group.units).reshape(group.cells, group.units, 1, 1)
    line = units.write(torch.full((axes[dim].size,), -1), numbers.expand(units.index.shape))
    entries = along(line, dim, len(axes)).expand(one.maps[0].shape)
    return one.maps[0].matrix(entries)[0, :, 0]


def _value(program: Program, name: str) -> Tensor:
    return read_tensor(program.module, name).double()


KroneckerSurgeon = KronOBSPruning
"""The name it has as a criterion and a reconstruction."""
