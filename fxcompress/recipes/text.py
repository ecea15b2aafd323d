"""Recipes as text: calls, as their repr is, and YAML. Text is read and never run."""

from __future__ import annotations

import ast
from typing import Any

from fxcompress.arguments import shown
from fxcompress.errors import RecipeError
from fxcompress.recipes.data import recipe_of
from fxcompress.recipes.known import make

_MANNER = "write options as in 'MagnitudePruning(ratio=0.5, aggregate=\"sum\")'"
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def parsed(text: str) -> Any:
    """What a text says: the call of a recipe, a literal, or a list or tuple of them.

    Raises:
        RecipeError: The text says nothing of the kind.
        PlanError: A class refuses a value.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except _UNREADABLE as error:
        raise RecipeError(f"the text {shown(text)}: {error}; {_MANNER}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(map(_value, node.elts))
    if isinstance(node, ast.List):
        return list(map(_value, node.elts))
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if not isinstance(node.func, ast.Name):
        raise SyntaxError("only a class can be called")  # noqa: TRY004 - an error in a text
    if node.args or any(each.arg is None for each in node.keywords):
        raise SyntaxError("every option needs its name")
    options: dict[str, Any] = {}
    for each in node.keywords:
        if str(each.arg) in options:
            raise SyntaxError(f"{each.arg!r} is given twice")
        options[str(each.arg)] = _value(each.value)
    return make(node.func.id, options, "the text")


def dumped(data: dict[str, Any]) -> str:
    """Plain data as YAML."""
    import yaml  # takes a while, and few ask for it

    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=False)
    return text


def loaded(text: str) -> Any:
    """The recipe in a YAML text, or those in its list.

    Raises:
        RecipeError: It is not YAML, or says no recipe.
    """
    import yaml

    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RecipeError(f"the text is not YAML: {first}") from error
    return [recipe_of(each) for each in data] if isinstance(data, list) else recipe_of(data)
