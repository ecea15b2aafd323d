"""How far two sets of outputs are apart, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxcompress.export.runtimes.protocol import Array
from fxcompress.graph.precision import NOTHING, OTHER_RUNTIME


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference of floating outputs; other outputs must be equal."""

    relative: float
    absolute: float


@dataclass(frozen=True)
class OutputError:
    """The distance of one output: ``max|a - b|``, and that over ``max|a|``."""

    output: str
    absolute: float
    relative: float
    ok: bool
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which knows no infinity: ``None`` there, and a ``problem``."""
        return {
            key: None if isinstance(value, float) and math.isinf(value) else value
            for key, value in asdict(self).items()
        }


def tolerance_for(
    tensors: Iterable[Tensor], rtol: float | None = None, atol: float | None = None
) -> Tolerance:
    """The tolerance of the least precise floating dtype among the tensors a result depends on."""
    kinds = {tensor.dtype for tensor in tensors if tensor.dtype in OTHER_RUNTIME} or {torch.float32}
    return Tolerance(
        relative=max(OTHER_RUNTIME[kind] for kind in kinds) if rtol is None else rtol,
        absolute=max(NOTHING[kind] for kind in kinds) if atol is None else atol,
    )


def distances(
    expected: Mapping[str, Tensor], found: Mapping[str, Array], allowed: Tolerance
) -> tuple[OutputError, ...]:
    """Compare outputs in order; names may differ, as in a file that another tool wrote."""
    if len(expected) != len(found):
        problem = f"the module has {len(expected)} outputs, the file {len(found)}"
        return (OutputError(", ".join(expected), math.inf, math.inf, False, problem),)
    return tuple(
        _distance(name, wanted.detach().cpu(), got, allowed)
        for (name, wanted), got in zip(expected.items(), found.values(), strict=True)
    )


def _distance(name: str, wanted: Tensor, got: Array, allowed: Tolerance) -> OutputError:
    def failure(problem: str) -> OutputError:
        return OutputError(name, math.inf, math.inf, False, problem)

    if tuple(wanted.shape) != got.shape:
        return failure(f"shape {got.shape} instead of {tuple(wanted.shape)}")
    if str(wanted.dtype).removeprefix("torch.") != str(got.dtype):
        return failure(f"dtype {got.dtype} instead of {wanted.dtype}")
    if not wanted.is_floating_point():
        differing = int((wanted.numpy() != got).sum())
        problem = f"{differing} of {got.size} entries differ" if differing else None
        share = differing / max(1, got.size)
        return OutputError(name, float(differing > 0), share, not differing, problem)

    a, b = wanted.double().numpy(), got.astype(np.float64)
    if np.isnan(a).any():
        return failure("the module itself gives NaN here; look at its weights and this input")
    if np.isnan(b).any():
        return failure(f"{int(np.isnan(b).sum())} of {b.size} entries are NaN in the file's output")
    # Infinities are legitimate (masked scores) where both have them; what is left is compared.
    difference = np.subtract(a, b, out=np.zeros_like(a), where=a != b)
    if not np.isfinite(difference).all():
        return failure("one of the two is infinite where the other is not")
    absolute = float(np.abs(difference).max(initial=0.0))
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    relative = absolute / scale if scale else (math.inf if absolute else 0.0)
    ok = relative <= allowed.relative or absolute <= allowed.absolute
    return OutputError(name, absolute, relative, ok)
