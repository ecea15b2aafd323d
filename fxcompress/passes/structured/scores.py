"""What criteria share: the weights of a group's units by member, how members are combined, and
what makes the scores of several groups comparable.

A *member* is one axis of a parameter that holds the units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.budget.normalise import NORMALISERS, Normaliser, lamp, normalised
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.units import units_on
from fxcompress.program import Program

__all__ = [
    "NORMALISERS",
    "ROLES",
    "Aggregate",
    "MemberRole",
    "Normaliser",
    "combined",
    "comparable",
    "entries_of",
    "is_bias",
    "lamp",
    "members_of",
    "normalised",
    "weights_of",
]

Aggregate = Literal["mean", "sum", "max", "first"]
MemberRole = Literal["produce", "contract", "affine", "table"]
"""Roles in which an axis can be a member; statistics are measured and not learned."""
ROLES: tuple[MemberRole, ...] = get_args(MemberRole)


def members_of(group: ChannelGroup, roles: Sequence[MemberRole]) -> list[Site]:
    """The axes that hold the units in one of `roles`, without biases: a bias shifts the units and
    carries none of their signal.
    """
    return [site for site in group.sites if site.role in roles and not is_bias(site)]


def is_bias(site: Site) -> bool:
    """Whether a site is what a layer adds."""
    return site.role == "affine" and site.parameter.rpartition(".")[2] == "bias"


def weights_of(program: Program, group: ChannelGroup, site: Site) -> Tensor:
    """The entries of every unit on one axis, shape (cells, units, m), in float64."""
    value = read_tensor(program.module, site.parameter)
    return entries_of(program, group, site, value.movedim(site.dim, 0))


def entries_of(program: Program, group: ChannelGroup, site: Site, places: Tensor) -> Tensor:
    """The same of any tensor whose first axis is that of the site: a gradient, or sums."""
    expr = program.analysis.axes(site.parameter)[site.dim]
    rows = places.flatten(1) if places.dim() > 1 else places
    units = units_on((expr,), 0, group.factor, group.over)
    return units.read(rows).flatten(2).to(torch.float64)


def comparable(each: Iterable[Tensor], aggregate: Aggregate, normaliser: Normaliser) -> Tensor:
    """The score of a group from those of its members, made comparable to other groups' scores."""
    return normalised(combined(each, aggregate), normaliser)


def combined(each: Iterable[Tensor], aggregate: Aggregate) -> Tensor:
    """The scores of several members as one; of ``first`` no other member is computed."""
    if aggregate == "first":
        return next(iter(each))
    together = torch.stack(tuple(each))
    if aggregate == "max":
        return together.amax(0)
    return together.sum(0) if aggregate == "sum" else together.mean(0)
