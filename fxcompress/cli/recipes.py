"""Passes from the command line: ``magnitude``, ``"nm-sparsity(n=1, m=4)"``, ``--flops 0.5``, and
whatever history shows: ``"MagnitudePruning(ratio=0.5)"``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from fxcompress import passes, train
from fxcompress.analysis.quantities import BUILT_IN
from fxcompress.budget import Budget
from fxcompress.errors import RecipeError
from fxcompress.recipes import Pipeline, Recipe

_CALL = re.compile(r"(?P<name>[\w-]+)\s*(?:\((?P<options>.*)\))?", re.DOTALL)
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+")


@dataclass(frozen=True)
class Sizes:
    """How much goes and from where: what ``--ratio``, ``--flops``, ``--include`` … say."""

    ratio: float | None = None
    flops: str | None = None
    macs: str | None = None
    params: str | None = None
    bytes: str | None = None
    everywhere: bool = False
    round_to: str | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    dims: Sequence[str] | None = None
    exact: bool = False

    def options(self) -> dict[str, Any]:
        """Those given, as keyword arguments of a pass.

        Raises:
            BudgetError: The budget makes no sense.
        """
        given = {name: getattr(self, name) for name in BUILT_IN}
        asked: dict[str, Any] = {
            name: _number(text) for name, text in given.items() if text is not None
        }
        if (self.everywhere or self.exact) and not asked:
            flag = "--exact" if self.exact else "--global"
            raise typer.BadParameter(f"{flag} needs a budget; give --flops, say")
        if self.everywhere and self.exact:
            raise typer.BadParameter("--global and --exact exclude each other")
        found: dict[str, Any] = {}
        if asked:
            asked["allocation"] = (
                "exact" if self.exact else "global" if self.everywhere else "uniform"
            )
            found["budget"] = Budget(**asked)
        if self.ratio is not None:
            found["ratio"] = self.ratio
        if self.round_to is not None:
            found["round_to"] = int(self.round_to) if self.round_to.isdecimal() else self.round_to
        for name in ("include", "exclude", "dims"):
            if getattr(self, name):
                found[name] = tuple(getattr(self, name))
        return found


def known_passes() -> dict[str, Callable[..., Any]]:
    """Passes and steps by the names they have here: MagnitudePruning is ``magnitude``."""
    found: dict[str, Callable[..., Any]] = {}
    rooms = {**dict.fromkeys(passes.__all__, passes), **dict.fromkeys(train.__all__, train)}
    for name, room in rooms.items():
        maker: Any = getattr(room, name)
        if _is_pass(maker) and maker.__name__ == name:
            words = [word.lower() for word in _WORD.findall(name)]
            found["-".join(words).removesuffix("-pruning")] = maker
    return found


def default_passes(sizes: Sizes, data: str | None) -> tuple[str, ...]:
    """What removes units where no pass is named: the best there is for what it may look at."""
    return ("least-squares" if data else "magnitude",) if sizes.options() else ()


def make_passes(texts: Sequence[str], sizes: Sizes) -> tuple[Any, ...]:
    """The passes in order; the sizes go to those that remove units.

    Raises:
        typer.BadParameter: There is no such pass or option, or sizes are given and no pass takes
            them.
        FxCompressError: A pass refuses the values.
    """
    shared = sizes.options()
    wanted = [one for text in texts for one in _parsed(text)]
    if shared and not any(_takes(type(one), shared) for one in wanted):
        names = ", ".join(name for name, maker in known_passes().items() if _takes(maker, shared))
        raise typer.BadParameter(
            f"none of these passes takes {', '.join(_spelled(shared))}; passes that do: {names}"
        )
    made = [replace(one, **shared) if _takes(type(one), shared) else one for one in wanted]
    for one in made:
        one.check()
    return tuple(made)


def _parsed(text: str) -> Sequence[Any]:
    """What a text says: a pass by its name here, or as history shows it; or several of these.

    Raises:
        typer.BadParameter: It says nothing of the kind.
    """
    if text.endswith((".yaml", ".yml")):
        return _saved(text)
    known, found = known_passes(), _CALL.fullmatch(text.strip())
    if found is not None and found["name"] in known:
        text = f"{known[found['name']].__name__}({found['options'] or ''})"
    elif found is not None and found["options"] is None:
        near = ", ".join(get_close_matches(text, known, n=3, cutoff=0.3) or known)
        raise typer.BadParameter(f"there is no pass {text!r}; did you mean {near}?")
    try:
        one = Recipe.parse(text)
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from error
    return one if isinstance(one, Pipeline) else (one,)


def _saved(path: str) -> Sequence[Any]:
    """The recipe in a YAML file, or those in its list."""
    try:
        one = Recipe.from_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise typer.BadParameter(f"{path}: {error}") from error
    return one if isinstance(one, Pipeline) else (one,)


def _takes(maker: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    return options.keys() <= inspect.signature(maker).parameters.keys()


def _is_pass(maker: Any) -> bool:
    """Whether it is a pass or step that needs only numbers and words; a criterion is more."""
    return (
        (hasattr(maker, "plan") or hasattr(maker, "run"))
        and not inspect.isabstract(maker)
        and all(
            parameter.default is not parameter.empty
            for parameter in inspect.signature(maker).parameters.values()
        )
    )


def _spelled(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in options]


def _number(text: str) -> float | int:
    """A share or an absolute number; only the latter is an int above 1."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no number; give 0.5, or 1000000") from error
