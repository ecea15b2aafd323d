"""Fresh inputs like a program's example: other values, and other sizes where they may vary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxcompress.export.onnx.exportable import Inputs
from fxcompress.interface import draws


def resized(inputs: Inputs, sizes: Mapping[str, int]) -> list[Tensor]:
    """The example with its named dimensions at other sizes; its slices are repeated in turn."""
    return [
        draws.resized(tensor, {dim: sizes[name] for dim, name in dims.items() if name in sizes})
        for tensor, dims in zip(inputs.tensors, inputs.dynamic, strict=True)
    ]


def drawn(inputs: Inputs, sizes: Mapping[str, int], seed: int) -> list[Tensor]:
    """Random values of the example's dtypes and ranges, at the given sizes.

    Integers lie within the example's own smallest and largest, so that indices stay valid. Flags,
    and floats with infinities among them, are masks: they keep the example's values.
    """
    generator = torch.Generator().manual_seed(seed)
    return [draws.drawn_like(tensor, generator) for tensor in resized(inputs, sizes)]
