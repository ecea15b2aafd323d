"""Fresh inputs like given ones: other values, and other sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def resized(tensor: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """A copy with these sizes on these axes; its slices are repeated in turn where they are few."""
    for axis, size in sizes.items():
        index = torch.arange(size, device=tensor.device) % max(1, tensor.shape[axis])
        tensor = tensor.index_select(axis, index)
    return tensor.clone()


def drawn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of the same dtype, range, shape and device.

    Integers lie within the tensor's own smallest and largest, so that indices stay valid. Flags,
    and floats with infinities among them, are masks: they keep their values.
    """
    if tensor.numel() == 0 or tensor.dtype == torch.bool or tensor.is_complex() or tensor.is_meta:
        return tensor
    low, high = tensor.min().item(), tensor.max().item()
    if not tensor.is_floating_point():
        span = (int(low), int(high) + 1)
        return torch.randint(*span, tensor.shape, generator=generator).to(tensor)
    wide = tensor.double().cpu()
    if not wide.isfinite().all():
        return tensor
    if low == high:  # a dummy such as torch.zeros: anything between it and 0 and 1
        low, high = min(low, 0.0), max(high, 1.0)
        fresh = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * fresh).to(tensor)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (wide.mean() + wide.std(correction=0) * noise).clamp(low, high).to(tensor)
