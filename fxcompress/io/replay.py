"""Whether a graph gives the values that its file says it gives: computed without data.

Every operator runs on fake tensors, which have shapes and no elements. So a graph that does not fit
together is found before there is any, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from fxcompress.capture.tracing import quiet
from fxcompress.errors import LoadError
from fxcompress.io.arguments import Ref
from fxcompress.io.operators import asserts
from fxcompress.io.schema import TensorValue

if TYPE_CHECKING:
    from fxcompress.io.schema import Value

_MANY = 2**16
"""More pieces than this are not made, to see what they are."""
_UNTOLD = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


@dataclass(frozen=True)
class Call:
    """A node as a file has it, with arguments in which `Ref` stands for nodes."""

    op: str
    name: str
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    value: Value


def check_values(calls: Sequence[Call], tensors: Mapping[str, Tensor]) -> None:
    """Compute what every node yields, and compare with what the file says.

    Where only data tell, or torch does not know, the file is believed.

    Args:
        calls: The nodes in order, their arguments checked.
        tensors: Parameters and buffers by name.

    Raises:
        LoadError: An operator refuses its arguments, or gives something else than the file says.
    """
    values: dict[str, Any] = {}
    mode = FakeTensorMode(allow_fallback_kernels=False)
    with quiet(), torch.inference_mode(False), torch.no_grad(), mode:
        for call in calls:
            if call.op != "output":
                try:
                    values[call.name] = _value(call, values, tensors)
                except LoadError:
                    raise
                except Exception as error:  # kernels refuse in many ways
                    raise LoadError(
                        f"node '{call.name}' cannot be computed ({type(error).__name__}: "
                        f"{str(error)[:200]}); the manifest is damaged"
                    ) from error


def _value(call: Call, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    said = _said(call.value)
    if call.op == "get_attr":
        said = _like(tensors[str(call.target)])
        _compare(call, said)
        return said
    if call.op != "call_function" or asserts(call.target):
        return said  # what an assertion asks of values, only data can answer
    args, kwargs = _filled(call.args, values), _filled(call.kwargs, values)
    target = call.target
    assert callable(target)
    if isinstance(target, OpOverload) and _makes_too_many(target, args, kwargs):
        return said
    try:
        found = target(*args, **kwargs)
    except _UNTOLD:
        return said
    return _compare(call, found)


def _compare(call: Call, found: Any) -> Any:
    if _agree(call.value, found):
        return found
    raise LoadError(
        f"node '{call.name}' gives {_described(found)}, and the manifest says "
        f"{_described(call.value)}; the two belong to different programs"
    )


def _agree(said: Value, found: Any) -> bool:
    if isinstance(found, Tensor):
        return (
            isinstance(said, TensorValue)
            and said.shape == list(found.shape)
            and getattr(torch, said.dtype) == found.dtype
            and all(dim < found.ndim for dim in said.dynamic)
        )
    if isinstance(found, list | tuple):
        return isinstance(said, list) and len(said) == len(found) and all(map(_agree, said, found))
    if isinstance(found, bool | int | float):
        return abs(found) < 2**63 and (said is None or found == said)
    return said is None


def _said(value: Value) -> Any:
    """What the file says a value is, on fake tensors."""
    if isinstance(value, list):
        return [_said(item) for item in value]
    if isinstance(value, TensorValue):
        return torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="cpu")
    return value


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, values) for item in value)
    if isinstance(value, Mapping):
        return {key: _filled(item, values) for key, item in value.items()}
    return value


def _makes_too_many(target: OpOverload, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator that gives a list may give so many pieces that making them takes long."""
    if all(str(value.type) != "List[Tensor]" for value in target._schema.returns):
        return False
    sizes = [
        size
        for item in _flat([*args, *kwargs.values()])
        for size in (item.shape if isinstance(item, Tensor) else (item,))
    ]
    return any(type(size) is int and abs(size) > _MANY for size in sizes)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, TensorValue):
        return f"{value.shape} {value.dtype}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value))}]"[:200]
    return repr(value)[:80]
