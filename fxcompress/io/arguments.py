"""Whether arguments fit the schema of an operator, before anything calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload

from fxcompress.errors import LoadError

if TYPE_CHECKING:
    from fxcompress.io.schema import Value

_ENUMS = (torch.dtype, torch.layout, torch.memory_format)
_MAX_EXPONENT = 64


@dataclass(frozen=True)
class Ref:
    """Stands for a node: its name, and what the file says of its value."""

    name: str
    value: Value

    @property
    def may_be_tensor(self) -> bool:
        """Whether the node may yield a tensor; what the file leaves open may be anything."""
        return self.value is None or not isinstance(self.value, list | bool | int | float)

    @property
    def may_be_number(self) -> bool:
        """Whether the node may yield a number."""
        return self.value is None or isinstance(self.value, bool | int | float)

    @property
    def may_be_list(self) -> bool:
        """Whether the node may yield several values."""
        return self.value is None or isinstance(self.value, list)


def check_call(
    target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], where: str
) -> None:
    """Check the arguments of a call, in which `Ref` stands for nodes.

    Raises:
        LoadError: There are too many or too few, or one is of another type than the schema has.
    """
    if isinstance(target, OpOverload):
        _check_operator(target, args, kwargs, where)
    else:
        _check_function(target, args, kwargs, where)


def _check_operator(
    target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], where: str
) -> None:
    schema = target._schema.arguments
    positional = [argument for argument in schema if not argument.kwarg_only]
    named = {argument.name: argument for argument in schema[len(args) :]}
    if len(args) > len(positional) or not kwargs.keys() <= named.keys():
        raise LoadError(f"{where}: {target} takes other arguments; the manifest is damaged")
    given = [*zip(positional, args, strict=False), *((named[k], v) for k, v in kwargs.items())]
    for argument, value in given:
        if not _fits(value, argument.type):
            raise LoadError(
                f"{where}: {target} takes {argument.type} as {argument.name}, not "
                f"{_shown(value)}; the manifest is damaged"
            )
    known = {argument.name for argument, _ in given}
    for argument in schema:
        if argument.name not in known and not argument.has_default_value():
            raise LoadError(f"{where}: {target} needs {argument.name}; the manifest is damaged")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value may be given where the schema has `kind`."""
    name = kind.kind()
    if name == "OptionalType":
        return value is None or _fits(value, kind.getElementType())
    if name == "ListType":
        if isinstance(value, list | tuple):
            return all(_fits(item, kind.getElementType()) for item in value)
        if isinstance(value, Ref):
            return value.may_be_list
        return type(value) in (int, float)  # one size for all axes
    if isinstance(value, Ref):
        return value.may_be_tensor if name == "TensorType" else value.may_be_number
    if name in ("TensorType", "NumberType"):
        return isinstance(value, bool | int | float | complex)
    return isinstance(value, _PYTHON_TYPES.get(name, ()))


_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "BoolType": (bool, int),
    "DeviceObjType": (torch.device,),
    "FloatType": (int, float),
    "IntType": (int, *_ENUMS),
    "StringType": (str,),
    "SymIntType": (int,),
}


def _check_function(
    target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], where: str
) -> None:
    """Functions of Python take numbers alone: strings and lists can be made to grow."""
    name = target.__name__
    if name == "getitem":
        good = len(args) == 2 and isinstance(args[0], Ref) and args[0].may_be_list
        good = good and type(args[1]) is int
    elif name in ("sym_sum", "sym_max", "sym_min") and len(args) == 1:
        good = isinstance(args[0], list | tuple) and all(map(_is_number, args[0]))
    else:
        good = all(map(_is_number, args)) and _takes(target, len(args))
    if name in ("pow", "round") and len(args) > 1:  # 10 ** 10 ** 9 never ends
        good = good and isinstance(args[1], int | float) and abs(args[1]) <= _MAX_EXPONENT
    if kwargs or not good:
        raise LoadError(f"{where}: {name} takes other arguments; the manifest is damaged")


def _is_number(value: object) -> bool:
    return value.may_be_number if isinstance(value, Ref) else isinstance(value, bool | int | float)


def _takes(target: Callable[..., Any], count: int) -> bool:
    if target in (min, max):
        return count > 1
    try:
        inspect.signature(target).bind(*[None] * count)
    except TypeError:
        return False
    return True


def _shown(value: object) -> str:
    return f"node '{value.name}'" if isinstance(value, Ref) else repr(value)[:80]
