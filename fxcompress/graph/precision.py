"""How far two computations of one thing may be apart, and how double precision tells rounding from
a fault: the one set of tolerances.

All are shares of the largest magnitude of what is compared, by the type it is computed in.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Module = TypeVar("Module", bound=nn.Module)
Tree = TypeVar("Tree")

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,  # sums of a few thousand products, in another order
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,  # eight bits of mantissa, accumulated over layers
}
"""Between two ways to compute one thing in torch: another order of sums, another kernel."""

OTHER_RUNTIME: Mapping[torch.dtype, float] = {
    # Sound exports of deep networks were seen to differ by up to 10 units in the last place of a
    # type's precision (1.2e-6 in float32), faulty ones by a hundredth and more; these lie between.
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Between torch and another runtime, which fuses and approximates as it likes."""

NOTHING: Mapping[torch.dtype, float] = {
    torch.float64: 1e-14,
    torch.float32: 1e-8,
    torch.float16: 1e-5,
    torch.bfloat16: 1e-5,
}
"""Absolute differences that say nothing: what is left where a value should be exactly zero."""

FAULT = 1e-2
"""Single precision alone makes no error as large as this, so double precision need not be asked."""


def tolerance_of(dtype: torch.dtype) -> float:
    """`TOLERANCE` of a type, that of float32 for types that are not floating."""
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])


def doubled(tensor: Tensor) -> Tensor:
    """The tensor in double precision, if it is of a floating or complex type."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def inputs_in_double(inputs: Tree) -> Tree:
    """Inputs with every floating tensor among them in double precision."""
    found: Tree = pytree.tree_map_only(Tensor, doubled, inputs)
    return found


def in_double(module: Module) -> Module:
    """A copy of a module that computes in double precision, unless it insists on its own type."""
    return copy.deepcopy(module).double()
