"""The classes of recipes by name: each is known from its definition on."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any
from weakref import WeakValueDictionary

from fxcompress.arguments import nearest
from fxcompress.errors import RecipeError

_KNOWN: dict[str, WeakValueDictionary[str, type]] = {}
"""By name, and by where a class is defined: a definition that is run again replaces the first."""


def register(kind: type, names: Iterable[str]) -> None:
    """Make a class known by `names`."""
    for name in names:
        own = _KNOWN.setdefault(name, WeakValueDictionary())
        own[f"{kind.__module__}.{kind.__qualname__}"] = kind


def is_known(name: str) -> bool:
    """Whether a class has the name."""
    return bool(_KNOWN.get(name))


def find(name: str, where: str) -> type:
    """The class of a name that stands in a text or data.

    Raises:
        RecipeError: There is none, with the nearest names, or there are several.
    """
    found = dict(_KNOWN.get(name, {}))
    if not found:
        names = [each for each in _KNOWN if is_known(each)]
        near = ", ".join(get_close_matches(name, names, n=3, cutoff=0.5)) or "none"
        raise RecipeError(
            f"{where}: no pass, step or other recipe is called {name!r}; the nearest are {near}. "
            "One of your own is known when its module is imported"
        )
    if len(found) > 1:
        several = " or ".join(sorted(found))
        raise RecipeError(f"{where}: {name!r} may be {several}; rename one of them")
    return next(iter(found.values()))


def make(name: str, options: Mapping[str, Any], where: str) -> Any:
    """The recipe of a class's name and options.

    Raises:
        RecipeError: There is no such class, or it has no such option.
        PlanError: The class refuses a value.
    """
    kind = find(name, where)
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            near = nearest(option, known) or f"it has {', '.join(known)}"
            raise RecipeError(f"{where}: {name} has no argument {option!r}; {near}")
    return kind(**options)
