"""Dims of attention heads that two weights hold together: query and key, value and output.

Of dim c a head only computes with the product of its two rows, so the unit is the matrix q_c k_cᵀ,
and the Gram matrix of these is (QQᵀ) ⊙ (KKᵀ). A pair of dims that is rotated together is the sum
of two such matrices; heads are matrices of their own, whose Gram matrices add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.axes.expressions import Concat, Factor, leaves
from fxcompress.axes.transforms import coordinates
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.weights import producers
from fxcompress.passes.projective.rewrites import Rewrites
from fxcompress.program import Program

Key = frozenset[tuple[Factor, int]]
Places = dict[Key, Tensor]


Heads = tuple[tuple[int, Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """The two sides in one attention layer.

    Attributes:
        sites: The axes of the query and of the key weight, or of value and output.
        biases: The bias of each side, if it has one.
        heads: For each head its cell, and the places of its dims on both sides, shape
            (units, copies); rotated pairs of dims have two copies.
    """

    sites: tuple[Site, Site]
    biases: tuple[str | None, str | None]
    heads: Heads


@dataclass(frozen=True, eq=False)
class Pairs:
    """The sides in all layers that must keep the same dims: several where they share a rotation.

    Attributes:
        program: Whose weights.
        group: Whose dims.
        layers: One pair for each layer.
    """

    program: Program
    group: ChannelGroup
    layers: tuple[Pair, ...]

    def grams(self) -> Tensor:
        """The Gram matrix of each cell's units, shape (cells, units, units).

        Several layers are scaled to the same mean squared length of a unit.
        """
        grams = [self._grams(pair) for pair in self.layers]
        if len(grams) == 1:
            return grams[0]
        means = [gram.diagonal(dim1=1, dim2=2).mean() for gram in grams]
        parts = [gram / mean if mean > 0 else gram for gram, mean in zip(grams, means, strict=True)]
        return torch.stack(parts).sum(0)

    def _grams(self, pair: Pair) -> Tensor:
        rows = [self._rows(*side) for side in zip(pair.sites, pair.biases, strict=True)]
        n = self.group.units
        total = torch.zeros(self.group.cells, n, n, dtype=torch.float64, device=rows[0].device)
        for cell, *places in pair.heads:
            copies = places[0].shape[1]
            own = [table[at.flatten()] for table, at in zip(rows, places, strict=True)]
            gram = (own[0] @ own[0].T) * (own[1] @ own[1].T)
            total[cell] += gram.reshape(n, copies, n, copies).sum((1, 3))
        return total

    def _rows(self, site: Site, bias: str | None) -> Tensor:
        rows = _value(self.program, site.parameter).double().movedim(site.dim, 0).flatten(1)
        if bias is None:
            return rows
        return torch.cat([rows, _value(self.program, bias).double()[:, None]], 1)

    def scale(self, rewrites: Rewrites, share: Tensor) -> None:
        """Multiply the rows of the first side, with their bias, by (cells, units) factors."""
        for pair in self.layers:
            site, bias = pair.sites[0], pair.biases[0]
            size = _value(self.program, site.parameter).shape[site.dim]
            line = torch.ones(size, dtype=torch.float64, device=share.device)
            for cell, places, _ in pair.heads:
                line[places] = share[cell][:, None].expand(places.shape)
            rewrites.multiply(site.parameter, site.dim, line)
            if bias is not None:
                rewrites.multiply(bias, 0, line)


def pairs_of(program: Program, group: ChannelGroup) -> Pairs | None:
    """The two sides of heads' dims; None for other groups, and for what a norm mixes."""
    if group.kind not in ("qk", "vo") or group.inexact:
        return None
    biases = {each.site: each.bias for each in producers(program, group)}
    written = list(biases)
    read = [site for site in group.sites if site.role == "contract"]
    if group.kind == "vo":
        sides = list(zip(written, read, strict=False)) if len(written) == len(read) else []
    elif len(written) == 1 or all(_is_fused(program, group, site) for site in written):
        sides = [(site, site) for site in written]
    else:  # query, key, query, key, …
        sides = list(zip(written[::2], written[1::2], strict=False)) * (len(written) % 2 == 0)
    layers = []
    for pair in sides:
        heads = _heads(group, *_both(program, group, *pair))
        if heads is None:
            return None
        layers.append(Pair(pair, (biases[pair[0]], biases.get(pair[1])), heads))
    return Pairs(program, group, tuple(layers)) if layers else None


def _is_fused(program: Program, group: ChannelGroup, site: Site) -> bool:
    """Whether query and key, with the value, are parts of this weight.

    Halves of dims that are rotated are parts too, but then all parts hold the units.
    """
    expr = program.analysis.axes(site.parameter)[site.dim]
    parts = [part for part in (expr, *getattr(expr, "parts", ())) if isinstance(part, Concat)]
    return any(
        0 < sum(group.factor in leaves(own) for own in part.parts) < len(part.parts)
        for part in parts
    )


def _both(program: Program, group: ChannelGroup, *sites: Site) -> tuple[Places, Places]:
    """The places of both sides; those of a fused weight are the halves of each dim's places."""
    first, second = (_places(program, group, site) for site in sites)
    if sites[0] != sites[1]:
        return first, second
    middle = {key: own.shape[1] // 2 for key, own in first.items()}
    return (
        {key: own[:, : middle[key]] for key, own in first.items()},
        {key: own[:, middle[key] :] for key, own in first.items()},
    )


def _places(program: Program, group: ChannelGroup, site: Site) -> Places:
    """For each head (the indices of all other factors) the places of its dims."""
    at = coordinates(program.analysis.axes(site.parameter)[site.dim])
    unit = at[group.factor]
    places = (unit >= 0).nonzero().flatten()
    others = [factor for factor in at if factor is not group.factor]
    if not others:
        order = unit[places].argsort(stable=True)
        return {frozenset(): places[order].reshape(group.units, -1)}
    table = torch.stack([at[factor][places] for factor in others], 1)
    kinds, which = table.unique(dim=0, return_inverse=True)
    found: Places = {}
    for number, kind in enumerate(kinds.tolist()):
        own = places[which == number]
        order = unit[own].argsort(stable=True)
        key = frozenset(pair for pair in zip(others, kind, strict=True) if pair[1] >= 0)
        found[key] = own[order].reshape(group.units, -1)
    return found


def _heads(group: ChannelGroup, first: Places, second: Places) -> Heads | None:
    """Each head of the side with more of them, with the one of the other side that serves it."""
    swap = len(second) > len(first)
    fine, coarse = (second, first) if swap else (first, second)
    found = []
    for key, places in fine.items():
        partner = next((own for other, own in coarse.items() if other <= key), None)
        if partner is None or partner.shape != places.shape:
            return None
        index, cell = dict(key), 0
        for factor in group.over:
            cell = cell * factor.size + index[factor]
        found.append((cell, partner, places) if swap else (cell, places, partner))
    return tuple(found)


def _value(program: Program, name: str) -> Tensor:
    return read_tensor(program.module, name)
