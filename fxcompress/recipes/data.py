"""Recipes as plain data: ``{"MagnitudePruning": {"ratio": 0.5}}``, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from fxcompress.arguments import shown
from fxcompress.errors import PlanError, RecipeError
from fxcompress.recipes.known import find, is_known, make


@singledispatch
def encoded(value: Any, place: str = "it") -> Any:
    """A value of a field as JSON has it: recipes by name, tuples as lists.

    Raises:
        PlanError: It is no data; with its place.
    """
    raise PlanError(
        f"{place} is {shown(value)}, which is no data; derive its class from fxcompress.Recipe, "
        "or give numbers, words, lists and mappings"
    )


@encoded.register(type(None))
@encoded.register(bool)
@encoded.register(int)
@encoded.register(float)
@encoded.register(str)
def _(value: Any, place: str = "it") -> Any:
    return value


@encoded.register(tuple)
@encoded.register(list)
def _(value: Any, place: str = "it") -> list[Any]:
    return [encoded(each, f"{place}[{number}]") for number, each in enumerate(value)]


@encoded.register(Mapping)
def _(value: Any, place: str = "it") -> dict[str, Any]:
    """A mapping of a field stays as it is, so it has to be what JSON gives back."""
    plain = dict(value)
    try:
        same = json.loads(json.dumps(plain)) == plain
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same or _is_recipe(plain):
        raise PlanError(
            f"{place} is a mapping that plain data cannot say; give words to numbers, words, lists "
            "(no tuples) and mappings of them"
        )
    return plain


def recipe_of(data: Any) -> Any:
    """The recipe that plain data say.

    Raises:
        RecipeError: They say none.
    """
    if not isinstance(data, Mapping) or len(data) != 1:
        raise RecipeError(
            f"the data are {shown(data)}, and no recipe: write the name of a class and its fields, "
            'as in {"MagnitudePruning": {"ratio": 0.5}}'
        )
    ((name, fields),) = ((str(key), value) for key, value in data.items())
    find(name, "the data")
    if not isinstance(fields, Mapping) or any(not isinstance(each, str) for each in fields):
        raise RecipeError(
            f"the data of {name} are {shown(fields)}; write its fields by their names"
        )
    return make(name, {key: _decoded(value) for key, value in fields.items()}, "the data")


def _decoded(data: Any) -> Any:
    if _is_recipe(data):
        return recipe_of(data)
    return [_decoded(each) for each in data] if isinstance(data, list) else data


def _is_recipe(data: Any) -> bool:
    """Whether this is a recipe: a known name with a mapping of fields, and nothing else."""
    return (
        isinstance(data, Mapping)
        and len(data) == 1
        and all(is_known(str(n)) and isinstance(f, Mapping) for n, f in data.items())
    )
