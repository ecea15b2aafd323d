"""Which functions a file may call: operators that compute values from values, and nothing else.

The list of operators is computed from their schemas. An operator of ATen is on it where it takes
tensors, numbers and modes, returns tensors or numbers, and belongs to none of the families whose
kernels trust their arguments: those take memory apart (`set_`, packed weights) or read files.
"""

from __future__ import annotations

import builtins
import math
import operator
import re
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from fxcompress.errors import LoadError

_OPERATORS = (
    "abs add and_ eq floordiv ge getitem gt invert le lt mod mul ne neg not_ or_ pos pow sub "
    "truediv xor"
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "trunc")},
    **{f"builtins.{name}": getattr(builtins, name) for name in ("abs", "max", "min", "round")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")
        if hasattr(torch, name)
    },
}
"""The functions beside operators that a graph may call: on numbers, and `getitem` on tuples."""
NAMES = {function: name for name, function in reversed(FUNCTIONS.items())}

_NAME = re.compile(r"([a-zA-Z]\w*)\.(\w+)\.(\w+)", re.ASCII)
_TRUSTING = (
    "backward coalesce cudnn data dense dequantize fbgemm miopen mkldnn mps nested overrideable "
    "pin pinned q qparams quantize quantized repr requires resize retain set sparse vulkan"
)
"""Words in the names of operators that take memory or layouts on trust, or change no value."""
_INTERNAL = (
    "__and__ __iand__ __ilshift__ __ior__ __irshift__ __ixor__ __lshift__ __or__ __rshift__ "
    "__xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_tensor_metadata _cdist_forward "
    "_conj _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _grouped_mm _is_all_true _is_any_true "
    "_local_scalar_dense _log_softmax _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _native_batch_norm_legit_no_training "
    "_scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax _to_copy _trilinear "
    "_unique2 _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_weight_norm _weight_norm_interface"
)
"""Operators with an underscore that graphs of real models hold, and that check their arguments."""
_ASSERTIONS = (
    "_assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async "
    "_functional_assert_scalar sym_constrain_range sym_constrain_range_for_size"
)
"""Operators that raise where the inputs are not what the graph was captured for."""
_TYPES = frozenset({"Tensor", "int", "bool", "float", "number", "str", "Device", "Generator"})
_RETURNS = frozenset({"Tensor", "int", "bool", "float", "number"})
_WRAPPED = re.compile(r"(?:Optional|List)\[(.*)\]")


def function_named(name: str, allow: Collection[str] = ()) -> Callable[..., Any]:
    """The function or operator of this name, as a file writes it: ``aten.relu.default``.

    Args:
        name: What the file says.
        allow: Namespaces (``myops``) or globs of names (``myops.*``, ``aten._foo.*``) that are
            allowed beside the operators that only compute.

    Raises:
        LoadError: There is no such operator in this process, or it is not allowed.
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    found = _NAME.fullmatch(name)
    operator = _overload(*found.groups()) if found else None
    if found is None or operator is None:
        raise LoadError(
            f"the graph calls {name[:80]}, which is not registered in this process; "
            f"import the package that defines its operators before loading"
        )
    namespace = found[1]
    asked = namespace in allow or any(fnmatchcase(name, glob) for glob in allow)
    if not asked and not (namespace == "aten" and only_computes(operator)):
        raise LoadError(
            f"the graph calls {name}, which is not among the operators that only compute; if you "
            f"trust who made the file, load it with allow=({namespace!r},) or allow=({name!r},)"
        )
    return operator


def asserts(operator: object) -> bool:
    """Whether an operator of ATen only raises where a condition does not hold."""
    if not isinstance(operator, OpOverload):
        return False
    namespace, _, base = operator._schema.name.partition("::")
    return namespace == "aten" and base in _ASSERTIONS.split()


@cache
def only_computes(operator: OpOverload) -> bool:
    """Whether an operator of ATen computes values from values, and checks what it is given."""
    schema = operator._schema
    base = schema.name.partition("::")[2]
    if asserts(operator):
        return True
    internal = base.startswith("_") or bool(set(base.split("_")) & set(_TRUSTING.split()))
    if internal and base not in _INTERNAL.split():
        return False
    kinds = [_kinds(str(argument.type)) for argument in schema.arguments]
    texts = any(kind == "str" for kind in kinds)
    return (
        all(kind in _TYPES for kind in kinds)
        and not (texts and "Tensor" not in kinds)  # a mode goes with a tensor; a path does not
        and bool(schema.returns)
        and all(_kinds(str(value.type)) in _RETURNS for value in schema.returns)
        and not any(a.kwarg_only and a.alias_info is not None for a in schema.arguments)  # out=
    )


def _kinds(type_: str) -> str:
    while (inner := _WRAPPED.fullmatch(type_)) is not None:
        type_ = inner[1]
    return type_


def _overload(namespace: str, packet: str, overload: str) -> OpOverload | None:
    """The operator, if it is registered: attributes of ``torch.ops`` that are none stay unread."""
    suffix = "" if overload == "default" else f".{overload}"
    if not torch._C._dispatch_has_kernel(f"{namespace}::{packet}{suffix}"):
        return None
    found = getattr(getattr(getattr(torch.ops, namespace), packet), overload, None)
    return found if isinstance(found, OpOverload) else None
