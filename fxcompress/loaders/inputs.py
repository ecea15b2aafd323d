"""Example inputs from the command line: ``1x3x224x224``, ``2x16:int64``, ``mask=2x16:bool``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxcompress.arguments import Seed, checked
from fxcompress.errors import LoadError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

DTYPES = {
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")


@checked(LoadError)
def parse_inputs(specs: Sequence[str], seed: Seed = 0) -> Arguments:
    """Make tensors for shapes; those with a name become keyword arguments.

    Floats are normal, integers are 0 or 1, which index any table of two rows, and flags are true.

    Args:
        specs: ``[name=]SHAPE[:dtype]`` each, float32 where no dtype is given.
        seed: For the values.

    Raises:
        LoadError: A specification is none, or its dtype is unknown.

    Example:
        >>> args, kwargs = parse_inputs(["2x3", "mask=2x16:bool"])
        >>> args[0].shape, kwargs["mask"].dtype
        (torch.Size([2, 3]), torch.bool)
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Any] = {}
    for spec in specs:
        found = _SHAPE.fullmatch(spec)
        if found is None:
            raise LoadError(
                f"{spec!r} is not an input; write its shape, as in 1x3x224x224, 2x16:int64 or "
                "attention_mask=2x16:int64"
            )
        shape = tuple(int(size) for size in found["shape"].split("x"))
        value = _made(shape, _dtype(found["dtype"] or "float32", spec), generator, spec)
        if found["name"]:
            kwargs[found["name"]] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def example(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, below: int = 2
) -> Tensor:
    """A tensor to call a model with; integers lie in ``[0, below)``."""
    if dtype == torch.bool:
        return torch.ones(tuple(shape), dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    return torch.randint(below, tuple(shape), generator=generator, dtype=dtype)


def _made(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, spec: str
) -> Tensor:
    try:
        return example(shape, dtype, generator)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LoadError(f"the input {spec!r} cannot be made: {reason}") from error


def _dtype(name: str, spec: str) -> torch.dtype:
    if name not in DTYPES:
        raise LoadError(f"unknown dtype {name!r} in the input {spec!r}; choose {', '.join(DTYPES)}")
    return DTYPES[name]
