"""Dims of attention heads that two weights hold together: query and key, value and output.

Of dim c a head only computes with the product of its two rows, so the unit is the matrix q_c k_cᵀ,
and the Gram matrix of these is (QQᵀ) ⊙ (KKᵀ). A pair of dims that is rotated together is the sum
of two such matrices; heads are matrices of their own, whose Gram matrices add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.axes import Factor
from fxcompress.graph import find_tensor
from fxcompress.groups import ChannelGroup, Site
from fxcompress.members import producers
from fxcompress.passes.projective.rewrites import Rewrites
from fxcompress.program import Program
from fxcompress.projection import coordinates

Key = frozenset[tuple[Factor, int]]
Places = dict[Key, Tensor]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The two sides, each a weight with the places of its axis that are one head's.

    Attributes:
        program: Whose weights.
        group: Whose dims.
        sites: The axes of the query and of the key weight, or of value and output.
        biases: The bias of each side, if it has one.
        heads: For each head its cell, and the places of its dims on both sides, shape
            (units, copies); rotated pairs have two copies.
    """

    program: Program
    group: ChannelGroup
    sites: tuple[Site, Site]
    biases: tuple[str | None, str | None]
    heads: tuple[tuple[int, Tensor, Tensor], ...]

    def grams(self) -> Tensor:
        """The Gram matrix of each cell's units, shape (cells, units, units)."""
        rows = [self._rows(side) for side in (0, 1)]
        n = self.group.units
        total = torch.zeros(self.group.cells, n, n, dtype=torch.float64, device=rows[0].device)
        for cell, *places in self.heads:
            copies = places[0].shape[1]
            own = [table[at.flatten()] for table, at in zip(rows, places, strict=True)]
            gram = (own[0] @ own[0].T) * (own[1] @ own[1].T)
            total[cell] += gram.reshape(n, copies, n, copies).sum((1, 3))
        return total

    def _rows(self, side: int) -> Tensor:
        site, bias = self.sites[side], self.biases[side]
        value = _value(self.program, site.parameter).double()
        rows = value.movedim(site.dim, 0).flatten(1)
        if bias is None:
            return rows
        return torch.cat([rows, _value(self.program, bias).double()[:, None]], 1)

    def scale(self, rewrites: Rewrites, share: Tensor) -> None:
        """Multiply the rows of the first side, with their bias, by (cells, units) factors."""
        site, bias = self.sites[0], self.biases[0]
        size = _value(self.program, site.parameter).shape[site.dim]
        line = torch.ones(size, dtype=torch.float64, device=share.device)
        for cell, places, _ in self.heads:
            line[places] = share[cell][:, None].expand(places.shape)
        rewrites.multiply(site.parameter, site.dim, line)
        if bias is not None:
            rewrites.multiply(bias, 0, line)


def pairs_of(program: Program, group: ChannelGroup) -> Pairs | None:
    """The two sides of a head's dims; None for other groups, and for what a norm mixes."""
    if group.kind not in ("qk", "vo") or group.inexact:
        return None
    written = {each.site: each for each in producers(program, group)}
    sites = list(written)
    if group.kind == "vo":
        sites += [site for site in group.sites if site.role == "contract"]
    if group.kind == "qk" and len(sites) == 1:
        halves = _halves(_places(program, group, sites[0]))
        sides = (sites[0], sites[0])
    elif len(sites) == 2:
        halves = (_places(program, group, sites[0]), _places(program, group, sites[1]))
        sides = (sites[0], sites[1])
    else:
        return None
    heads = None if halves is None else _heads(group, *halves)
    if heads is None:
        return None
    biases = [written[site].bias if site in written else None for site in sides]
    return Pairs(program, group, sides, (biases[0], biases[1]), heads)


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


def _halves(places: Places) -> tuple[Places, Places] | None:
    """Query and key in one fused weight: the first and the second half of each dim's places."""
    if any(own.shape[1] % 2 for own in places.values()):
        return None
    middle = {key: own.shape[1] // 2 for key, own in places.items()}
    return (
        {key: own[:, : middle[key]] for key, own in places.items()},
        {key: own[:, middle[key] :] for key, own in places.items()},
    )


def _heads(
    group: ChannelGroup, first: Places, second: Places
) -> tuple[tuple[int, Tensor, Tensor], ...] | None:
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
    value = find_tensor(program.module, name)
    assert value is not None
    return value.detach()
