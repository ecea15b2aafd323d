"""What groups are called, and where they lie: a key that the analysis of the next program finds.

Names of groups come from layers and are numbered where a layer has several. When a group shrinks to
a single unit, which is no group any more, a fresh numbering would shift; so a name follows the
place of its group instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Concat, Expr, Factor, leaves
from fxcompress.axes.transforms import size_of
from fxcompress.rules import Role

Widths = Mapping[Factor, int]


@dataclass(frozen=True)
class Site:
    """One axis of a parameter or buffer that holds a group's units, and what it does with them."""

    parameter: str
    dim: int
    role: Role


Sites = Mapping[Factor, tuple[Site, ...]]


def named(sites: Sites, kinds: Mapping[Factor, str]) -> dict[Factor, str]:
    """Module names of the first producers, ``:in`` where nothing produces the units.

    Where one layer produces several groups the kind is added, then a number.
    """
    base = {factor: _layer(own) for factor, own in sites.items()}
    count = Counter(base.values())
    named = {
        factor: name if count[name] == 1 else f"{name}:{kinds[factor].replace(' ', '_')}"
        for factor, name in base.items()
    }
    count = Counter(named.values())
    seen: Counter[str] = Counter()
    for factor, name in named.items():
        if count[name] > 1:
            seen[name] += 1
            named[factor] = f"{name}.{seen[name]}"
    return named


def remembered(
    coupling: Coupling,
    sites: Sites,
    names: Mapping[Factor, str],
    known: Mapping[str, str],
) -> dict[Factor, str]:
    """The names that groups had before; new ones where there was none, and none twice."""
    found = {f: known.get(key_of(coupling, f, own, {})) for f, own in sites.items()}
    taken = {*found.values(), *known.values()}
    made: dict[Factor, str] = {}
    for factor, name in found.items():
        own = name or names[factor]
        while name is None and own in taken:
            own += "'"
        made[factor] = own
        taken.add(own)
    return made


def key_of(coupling: Coupling, factor: Factor, sites: Sequence[Site], widths: Widths) -> str:
    """The key of `factor` once factors have `widths`: where its first two units lie.

    Args:
        coupling: The analysis of the module.
        factor: Any factor of two units or more.
        sites: The parameter axes that hold it.
        widths: Sizes of factors that change; the others keep theirs.
    """
    first = _first(sites)
    start, step = _place(coupling.parameters[first.parameter][first.dim], factor, widths)
    return f"{first.parameter}:{first.dim}:{start}:{step}"


def _place(expr: Expr, factor: Factor, widths: Widths) -> tuple[int, int]:
    """Where the first unit lies on an axis, and how far from it the second."""
    if isinstance(expr, Factor):
        return 0, 1
    at = next(n for n, part in enumerate(expr.parts) if factor in leaves(part))
    start, step = _place(expr.parts[at], factor, widths)
    if isinstance(expr, Concat):
        return sum(size_of(part, widths) for part in expr.parts[:at]) + start, step
    inner = prod(size_of(part, widths) for part in expr.parts[at + 1 :])
    return start * inner, step * inner


def _first(sites: Sequence[Site]) -> Site:
    order = {"produce": 0, "table": 0, "affine": 1, "statistic": 1, "contract": 2}
    return min(sites, key=lambda site: order[site.role])


def _layer(sites: tuple[Site, ...]) -> str:
    first = _first(sites)
    layer, _, leaf = first.parameter.rpartition(".")
    name = layer if layer and leaf in ("weight", "bias") else first.parameter
    return f"{name}:in" if first.role == "contract" else name
