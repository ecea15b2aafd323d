"""Which groups a pass may change, and for all others the reason why not."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget.options import Limits
from fxcompress.errors import BudgetError
from fxcompress.graph.parameters import Names, names_of

__all__ = ["Names", "Scope", "check_globs", "matches", "names_of", "scope_of", "touches"]

_HINT = (
    "Change include=, exclude=, dims=, exact_only= or min_units=, see group.explain() for what "
    "freezes it, or take another method"
)
_SIDES = {"out": ("produce", "table", "affine", "statistic"), "in": ("contract",)}


@dataclass(frozen=True)
class Scope:
    """The groups that may change, and why each of the others may not.

    Attributes:
        groups: May change, in the order of the program.
        left: The reason for every other group.
    """

    groups: tuple[ChannelGroup, ...]
    left: Mapping[ChannelGroup, str]

    def without(self, left: Mapping[ChannelGroup, str]) -> Scope:
        """The scope without more groups, each with its reason.

        Raises:
            BudgetError: None is left.
        """
        groups = tuple(group for group in self.groups if group not in left)
        if not groups:
            raise BudgetError(f"no group may lose a unit: {describe(left)}. {_HINT}")
        return Scope(groups, {**self.left, **left})


def scope_of(groups: Sequence[ChannelGroup], names: Names, limits: Limits) -> Scope:
    """Apply `limits` to the groups of a program.

    Args:
        groups: All groups of the program.
        names: From `names_of` of its module.
        limits: What the user asked for.

    Raises:
        BudgetError: A glob matches no parameter, the model has no group of a kind in ``dims``, or
            no group is left that may lose a unit.
    """
    check_globs((*limits.include, *limits.exclude), names)
    check_globs(limits.groups, [group.name for group in groups], "group")
    _check_dims(groups, limits.kinds)
    reasons = {group: _reason(group, names, limits) for group in groups}
    left = {group: reason for group, reason in reasons.items() if reason is not None}
    return Scope(tuple(groups), {}).without(left)


def describe(left: Mapping[ChannelGroup, str], most: int = 5) -> str:
    """Groups with their reasons, in words."""
    words = [f"{group.name} ({reason})" for group, reason in list(left.items())[:most]]
    rest = len(left) - len(words)
    return (
        ", ".join(words) + (f", and {rest} more" if rest > 0 else "") if words else "there is none"
    )


def _reason(group: ChannelGroup, names: Names, limits: Limits) -> str | None:
    if group.frozen:
        return f"frozen: {group.frozen}"
    if limits.include and not any(touches(pattern, group, names) for pattern in limits.include):
        return f"not in include={limits.include!r}"
    for pattern in limits.exclude:
        if touches(pattern, group, names):
            return f"excluded by {pattern!r}"
    if limits.groups and not any(matches(pattern, (group.name,)) for pattern in limits.groups):
        return f"not in groups={limits.groups!r}"
    if limits.kinds and not _means(limits.kinds, group.kind):
        return f"{group.kind}, not in dims={limits.dims!r}"
    if limits.exact_only and not group.exact:
        return f"not exact: {group.inexact[0]}"
    if group.units <= limits.min_units:
        return f"has {group.units} units, min_units={limits.min_units}"
    return None


def _means(dims: Sequence[str], kind: str) -> bool:
    return kind in dims or (kind == "head dims" and {"qk", "vo"} <= {*dims})


def _check_dims(groups: Sequence[ChannelGroup], dims: Sequence[str]) -> None:
    count = Counter(group.kind for group in groups)
    for kind in dims:
        if kind not in count and not (kind in ("qk", "vo") and "head dims" in count):
            known = ", ".join(f"{name!r} ({number})" for name, number in sorted(count.items()))
            raise BudgetError(
                f"dims={kind!r}: this model has no groups of that kind; it has {known}"
            )


def touches(pattern: str, group: ChannelGroup, names: Names) -> bool:
    """Whether the group has a site that the pattern, with its side, means."""
    glob, _, side = pattern.partition(":")
    roles = _SIDES.get(side)
    return any(
        (roles is None or site.role in roles)
        and matches(glob, names.get(site.parameter, (site.parameter,)))
        for site in group.sites
    )


def matches(glob: str, names: Iterable[str]) -> bool:
    """Whether the glob matches one of the names."""
    return any(fnmatch.fnmatchcase(name, glob) for name in names)


def check_globs(
    patterns: Iterable[str], names: Iterable[str], what: str = "parameter or buffer"
) -> None:
    """Refuse a glob that matches no parameter, or nothing of another kind.

    Raises:
        BudgetError: With the nearest names there are.
    """
    known = list(names)
    for pattern in patterns:
        glob = pattern if what == "group" else pattern.partition(":")[0]
        if not matches(glob, known):
            layers = {name[:at] + ".*" for name in known for at in _dots(name)}
            near = difflib.get_close_matches(glob, [*known, *sorted(layers)], n=3, cutoff=0.4)
            hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
            raise BudgetError(f"no {what} is called {pattern!r}{hint}. Globs match whole names")


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]
