"""Channel groups: the factors that parameters share, with everything a pass needs to know about
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.names import Site, key_of, named, remembered
from fxcompress.axes.expressions import Axes, Expr, Factor, Product, leaves
from fxcompress.graph.captured import CapturedModule
from fxcompress.rules import Role

__all__ = ["LINEAR", "Analysed", "Analysis", "ChannelGroup", "Site", "find_groups", "names_after"]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that are kept or removed together, wherever they occur.

    Attributes:
        name: After the first layer that produces the units.
        units: How many units there are; in each cell, where there are several.
        cells: How many index sets the group may have: the number of heads for the dims of a head,
            the number of convolution groups for the channels of one; 1 where all copies must agree.
        sites: The parameter axes that hold the units.
        frozen: Why no unit may be removed, or None; the first of the reasons.
        inexact: What mixes along the units (a norm, a mean), so that removing is not the same as
            masking with zeros.
        nonlinearities: What acts on each unit alone (an activation, BatchNorm): across it only
            selecting units is exact.
        kind: What a unit is, told by the operations that use it (see `analysis.kinds`): one of
            the ``heads`` of attention, a query/key dim (``qk``), a value dim (``vo``), or both
            (``head dims``); of a ``residual`` width, which several maps or tables add to; of an
            ``mlp``, which dense layers or 1 x 1 convolutions write and others read; else
            ``channels``. The first that fits holds.
        factor: The factor of the axis expressions.
        over: The factors whose indices number the cells.
        span: Places that one unit, with its copies in all cells, takes on the first axis that
            produces it: the number of heads for a head's dims, a head's dims for the heads.
        reasons: Everything that keeps the units from being removed.
    """

    name: str
    units: int
    cells: int
    sites: tuple[Site, ...]
    frozen: str | None
    inexact: tuple[str, ...]
    nonlinearities: tuple[str, ...]
    kind: str
    factor: Factor = field(repr=False)
    over: tuple[Factor, ...] = field(repr=False)
    span: int = 1
    reasons: tuple[str, ...] = field(default=(), repr=False)

    @property
    def exact(self) -> bool:
        """Whether removing units equals masking them with zeros."""
        return not self.inexact

    def explain(self) -> str:
        """The group in words: its layers, and why it may not shrink or is not exact."""
        cells = f" in each of {self.cells} cells" if self.cells > 1 else ""
        lines = [f"{self.name}: {self.units} {self.kind}{cells}"]
        lines += [f"  {site.role:9} axis {site.dim} of {site.parameter}" for site in self.sites]
        lines += [f"  frozen: {words}" for words in _joined(self.reasons)]
        lines += [f"  not exact under zero-masking: {words}" for words in self.inexact]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.name


def _joined(reasons: Iterable[str]) -> list[str]:
    """Reasons "words (at node)", each told once with all its nodes."""
    nodes: dict[str, list[str]] = {}
    for reason in reasons:
        words, _, place = reason.partition(" (at ")
        nodes.setdefault(words, []).append(place.removesuffix(")"))
    return [_told(words, *places) for words, places in nodes.items()]


def _told(words: str, first: str, *others: str) -> str:
    at = f" (at {first})" if first else ""
    also = f", also at {', '.join(others)}" if others else ""
    return words + at + also


#: Held by a layer in one of these roles, units are channels; a table of positions alone is none.
LINEAR: frozenset[Role] = frozenset(("produce", "table", "contract"))


def find_groups(
    coupling: Coupling, known: Mapping[str, str] | None = None
) -> tuple[ChannelGroup, ...]:
    """The groups of a coupling, in the order the graph first reads their parameters.

    Args:
        coupling: The analysis of a module.
        known: Names that groups had before, by their keys; see `names_after`.
    """
    sites = _sites(coupling)
    kinds = {factor: _kind(coupling, factor, own) for factor, own in sites.items()}
    names = named(sites, kinds)
    if known:
        names = remembered(coupling, sites, names, known)
    return tuple(_group(coupling, f, names[f], kinds[f], sites[f]) for f in sites)


def _sites(coupling: Coupling) -> dict[Factor, tuple[Site, ...]]:
    order = {name: number for number, name in enumerate(coupling.parameters)}
    found = {
        factor: tuple(Site(*held) for held in sorted(own, key=lambda h: (order[h[0]], *h[1:])))
        for factor, own in coupling.roles.items()
        if any(role in LINEAR for *_, role in own)
    }
    return dict(
        sorted(
            found.items(),
            key=lambda item: (order[item[1][0].parameter], item[1][0].dim, item[0].uid),
        )
    )


def _group(
    coupling: Coupling, factor: Factor, name: str, kind: str, sites: tuple[Site, ...]
) -> ChannelGroup:
    reasons = coupling.frozen.get(factor, ())
    over = _over(coupling, factor)
    cells = 1
    for other in over:
        cells *= other.size
    return ChannelGroup(
        name=name,
        units=factor.size,
        cells=cells,
        sites=sites,
        frozen=reasons[0] if reasons else None,
        inexact=coupling.inexact.get(factor, ()),
        nonlinearities=coupling.nonlinearities.get(factor, ()),
        kind=kind,
        factor=factor,
        over=over,
        span=_span(coupling, factor, sites),
        reasons=reasons,
    )


def _kind(coupling: Coupling, factor: Factor, sites: Sequence[Site]) -> str:
    known = set(coupling.kinds.get(factor, ()))
    attention = known & {"heads", "qk", "vo"}
    if attention == {"qk", "vo"}:
        return "head dims"
    if len(attention) == 1:
        return attention.pop()
    if "sum" in known:
        return "residual"
    return "mlp" if "scores" not in known and _between_maps(coupling, sites) else "channels"


def _between_maps(coupling: Coupling, sites: Sequence[Site]) -> bool:
    """Whether maps write the units and other maps read them, all of one position at a time.

    A map from the units to themselves is a recurrence, and one with a window a convolution.
    """
    writers = {site.parameter for site in sites if site.role == "produce"}
    readers = {site.parameter for site in sites if site.role == "contract"}
    pair = bool(writers and readers) and writers.isdisjoint(readers)
    return pair and coupling.windowed.isdisjoint(writers | readers)


def _over(coupling: Coupling, factor: Factor) -> tuple[Factor, ...]:
    """Companions that units may differ over, in the order of the first axis that holds them."""
    co_occurring = {
        other
        for other in coupling.co_occurring.get(factor, frozenset())
        if factor not in coupling.co_occurring.get(other, frozenset()) and _repeats(coupling, other)
    }
    if not co_occurring:
        return ()
    for exprs in coupling.parameters.values():
        for expr in exprs:
            order = list(dict.fromkeys(leaves(expr)))
            if factor in order:
                return tuple(
                    other for other in order[: order.index(factor)] if other in co_occurring
                )
    return ()


def _repeats(coupling: Coupling, factor: Factor) -> bool:
    """Cells are counted over factors that layers hold; not over windows or positions."""
    return bool(coupling.roles.get(factor))


def _span(coupling: Coupling, factor: Factor, sites: tuple[Site, ...]) -> int:
    first = next((s for s in sites if s.role in ("produce", "table")), sites[0])
    expr = coupling.parameters[first.parameter][first.dim]
    return max(1, _part_holding(expr, factor).size // factor.size)


def _part_holding(expr: Expr, factor: Factor) -> Expr:
    """The part of a concatenation that holds `factor`."""
    if isinstance(expr, (Factor, Product)):
        return expr
    return next(_part_holding(part, factor) for part in expr.parts if factor in leaves(part))


def names_after(
    coupling: Coupling, groups: Sequence[ChannelGroup], widths: Mapping[ChannelGroup, int]
) -> dict[str, str]:
    """The names of groups by the keys they will have when some have changed their `widths`."""
    sizes = {group.factor: width for group, width in widths.items()}
    return {
        key_of(coupling, group.factor, group.sites, sizes): group.name
        for group in groups
        if widths.get(group, group.units) > 1
    }


@dataclass(frozen=True)
class Analysis:
    """A coupling with its groups; what a program offers to passes.

    Attributes:
        coupling: What is known about the module.
        names: Names that groups had before, by their keys.
    """

    coupling: Coupling
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups, frozen ones included."""
        return find_groups(self.coupling, self.names)

    @cached_property
    def by_factor(self) -> Mapping[Factor, ChannelGroup]:
        """The group of each factor that has one."""
        return {group.factor: group for group in self.groups}

    def axes(self, parameter: str) -> Axes:
        """The axes of a parameter or buffer."""
        return self.coupling.parameters[parameter]


class Analysed(Protocol):
    """What was analysed, and the analysis: a program, for those that need no more of one."""

    @property
    def module(self) -> CapturedModule: ...

    @property
    def analysis(self) -> Analysis: ...
