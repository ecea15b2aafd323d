"""Passes from the command line: ``magnitude``, ``"nm-sparsity(n=1, m=4)"``, ``--flops 0.5``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import typer

from fxcompress import passes
from fxcompress.analysis.quantities import BUILT_IN
from fxcompress.budget import Budget
from fxcompress.program import Pass

_MANNER = "write options as in 'magnitude(p=1, aggregate=\"sum\")'"
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
    """The passes by the names they have here: MagnitudePruning is ``magnitude``."""
    found: dict[str, Callable[..., Any]] = {}
    for name in passes.__all__:
        maker: Any = getattr(passes, name)
        if _is_pass(maker) and maker.__name__ == name:
            words = [word.lower() for word in _WORD.findall(name)]
            found["-".join(words).removesuffix("-pruning")] = maker
    return found


def default_passes(sizes: Sizes, data: str | None) -> tuple[str, ...]:
    """What removes units where no pass is named: the best there is for what it may look at."""
    return ("least-squares" if data else "magnitude",) if sizes.options() else ()


def make_passes(texts: Sequence[str], sizes: Sizes) -> tuple[Pass, ...]:
    """The passes in order; the sizes go to those that remove units.

    Raises:
        typer.BadParameter: There is no such pass or option, or sizes are given and no pass takes
            them.
        FxCompressError: A pass refuses the values.
    """
    shared = sizes.options()
    wanted = [_parsed(text) for text in texts]
    taken = [maker for maker, _ in wanted if _takes(maker, shared)]
    if shared and not taken:
        names = ", ".join(name for name, maker in known_passes().items() if _takes(maker, shared))
        raise typer.BadParameter(
            f"none of these passes takes {', '.join(_spelled(shared))}; passes that do: {names}"
        )
    made = [maker(**{**own, **(shared if maker in taken else {})}) for maker, own in wanted]
    for one in made:
        one.check()
    return tuple(made)


def _parsed(text: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    known, found = known_passes(), _CALL.fullmatch(text.strip())
    name = found["name"] if found else text
    if found is None or name not in known:
        near = ", ".join(get_close_matches(name, known, n=3, cutoff=0.3) or known)
        raise typer.BadParameter(f"there is no pass {name!r}; did you mean {near}?")
    options = _literals(found["options"] or "", text)
    unknown = options.keys() - inspect.signature(known[name]).parameters
    if unknown:
        raise typer.BadParameter(
            f"{name} has no option {', '.join(sorted(unknown))}; it has "
            f"{', '.join(inspect.signature(known[name]).parameters)}"
        )
    return known[name], options


def _literals(options: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"dict({options})", mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) else []
        values = {str(each.arg): ast.literal_eval(each.value) for each in keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise typer.BadParameter(f"{text!r}: {error}; {_MANNER}") from error
    if not isinstance(call, ast.Call):
        raise typer.BadParameter(f"{text!r}: there is more than options; {_MANNER}")
    if call.args:
        raise typer.BadParameter(f"{text!r}: every option needs its name; {_MANNER}")
    return values


def _takes(maker: Callable[..., Pass], options: Mapping[str, Any]) -> bool:
    return options.keys() <= inspect.signature(maker).parameters.keys()


def _is_pass(maker: Any) -> bool:
    """Whether it is a pass that needs nothing but numbers and words; a criterion is more."""
    return (
        hasattr(maker, "plan")
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
