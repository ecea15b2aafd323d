"""How two outputs are compared: how far apart they are, and in what type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dtype_of, is_tensor
from fxcompress.graph.precision import TOLERANCE


def distance(found: Any, reference: Any) -> tuple[float, bool]:
    """The largest difference over the largest reference value, and whether `found` is finite.

    Tensors are compared one by one, complex numbers by the magnitude of what lies between them;
    places where the reference is not finite are left out.
    """
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(reference), strict=True)
    worst, finite = 0.0, True
    for a, b in pairs:
        if not isinstance(a, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf"), False
        if a.numel() == 0:
            continue
        kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        a, b = a.detach().to(kind), b.detach().to(kind)
        usable = torch.isfinite(b)
        finite = finite and bool(torch.isfinite(a[usable]).all())
        gap = (a - b)[usable].abs()
        if gap.numel() and float(gap.max()) > 0:
            worst = max(
                worst,
                float(gap.max() / b[usable].abs().max().clamp(min=torch.finfo(torch.float64).tiny)),
            )
    return worst, finite


def coarsest_dtype(module: CapturedModule) -> torch.dtype:
    """The coarsest floating type anything is computed in; a model may cast in its forward."""
    kinds = {p.dtype for p in module.parameters()}
    kinds.update(dtype_of(node) for node in module.graph.nodes if is_tensor(node))
    reals = (kind.to_real() if kind.is_complex else kind for kind in kinds)
    floats = [kind for kind in reals if kind in TOLERANCE]
    return max(floats, key=TOLERANCE.__getitem__, default=torch.float32)


def is_vacuous(outputs: Any) -> bool:
    """Outputs of zeros (from inputs of zeros, say), and of what is not finite, prove nothing."""
    return not any(bool((t.isfinite() & (t != 0)).any()) for t in _tensors(outputs))


def is_incomparable(outputs: Any) -> bool:
    """Whether `distance` leaves out every place of these as a reference."""
    return not any(bool(t.isfinite().any()) for t in _tensors(outputs))


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def is_blank(inputs: Any) -> bool:
    """Whether no floating input has two values: others may give more than zeros."""
    floats = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and _is_drawable(t)]
    return bool(floats) and all(not t.numel() or bool((t == t.flatten()[0]).all()) for t in floats)


def _is_drawable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def drawn(tensor: Tensor) -> Tensor:
    """Normal values in the place of floating and complex ones, always the same."""
    if not _is_drawable(tensor):
        return tensor
    generator = torch.Generator().manual_seed(0)
    kind = torch.complex64 if tensor.is_complex() else torch.float32
    return torch.randn(tensor.shape, generator=generator, dtype=kind).to(tensor)
