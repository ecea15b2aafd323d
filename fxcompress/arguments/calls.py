"""Functions and dataclasses whose arguments are checked by their annotations."""

from __future__ import annotations

import inspect
import sys
from abc import ABCMeta
from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import GenericAlias
from typing import Any, ClassVar, ParamSpec, TypeVar, get_type_hints

from fxcompress.arguments.kinds import Refused, fit
from fxcompress.arguments.words import nearest, shown
from fxcompress.errors import FxCompressError, PlanError

P = ParamSpec("P")
R = TypeVar("R")
Errors = Mapping[str, type[FxCompressError]]


def checked(
    error: type[FxCompressError], **errors: type[FxCompressError]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of the decorated function before it runs.

    Args:
        error: What is raised.
        errors: What is raised for single parameters instead, by their names.

    Returns:
        A decorator. The function then raises `error` where an argument is missing, unknown, or not
        what its annotation says, and is handed numbers of numpy as Python's.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        name = function.__qualname__

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = _bound(name, signature, args, kwargs, error)
            _fit_all(name, bound, kinds(function), error, errors)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


class _Checking(ABCMeta):
    """The type of classes whose arguments are checked before anything is made."""

    error: type[FxCompressError]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        bound = _bound(cls.__name__, cls.__signature__, args, kwargs, cls.error)
        _fit_all(cls.__name__, bound, kinds(cls), cls.error, _errors(cls))
        return super().__call__(*bound.args, **bound.kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        return _signature(cls)


class Checked(metaclass=_Checking):
    """Base of dataclasses that take only what the annotations of their fields say.

    Attributes:
        error: What is raised otherwise, for the fields that the same class declares.
    """

    error: ClassVar[type[FxCompressError]] = PlanError


@cache
def _signature(cls: type) -> inspect.Signature:
    whole = inspect.signature(cls.__init__)  # type: ignore[misc]
    own = [each for each in whole.parameters.values() if each.name != "self"]
    return whole.replace(parameters=own)


@cache
def _errors(cls: type) -> Errors:
    """What is raised for each field: what the class that declares it says."""
    found: dict[str, type[FxCompressError]] = {}
    for base in reversed(cls.__mro__):
        own = vars(base).get("error", PlanError)
        found |= dict.fromkeys(vars(base).get("__annotations__", ()), own)
    return found


@cache
def kinds(owner: Any) -> Mapping[str, Any]:
    """The annotations of a function or a class by parameter.

    One with names that exist for type checkers alone stands for anything.
    """
    found: dict[str, Any] = {}
    for each in reversed(getattr(owner, "__mro__", (owner,))):
        names = vars(sys.modules[each.__module__])
        for name, annotation in inspect.get_annotations(each).items():
            found[name] = _resolved(annotation, names)
    return found


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    holder = type("Holder", (), {"__annotations__": {"it": annotation}})
    try:
        return get_type_hints(holder, names, include_extras=True)["it"]
    except NameError:
        return Any


def _bound(
    who: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: type[FxCompressError],
) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as wrong:
        known = signature.parameters
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            near = nearest(unknown[0], known) or f"it has {', '.join(known)}"
            raise error(f"{who} has no argument {unknown[0]!r}; {near}") from None
        raise error(f"{who}: {wrong}; its arguments are {', '.join(known)}") from None


def _fit_all(
    who: str,
    bound: inspect.BoundArguments,
    accepted: Mapping[str, Any],
    error: type[FxCompressError],
    errors: Errors,
) -> None:
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        kind = accepted.get(name, Any)
        if parameter.kind is parameter.VAR_POSITIONAL:
            kind = GenericAlias(tuple, (kind, ...))
        elif parameter.kind is parameter.VAR_KEYWORD:
            continue
        try:
            bound.arguments[name] = fit(kind, value)
        except Refused as refused:
            hint = f"; {refused.hint}" if refused.hint else ""
            raise errors.get(name, error)(
                f"{who}: {name}{refused.place} must be {refused.wanted}, "
                f"not {shown(refused.value)}{hint}"
            ) from None
