"""Fresh inputs like a program's example: other values, and other sizes where they may vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxcompress.errors import ExportError
from fxcompress.export.onnx.exportable import Inputs
from fxcompress.interface import draws

# onnxruntime's names of input types.
_ORT_DTYPES = {
    "tensor(bool)": torch.bool,
    "tensor(double)": torch.float64,
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
}


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


def made_up(declared: Sequence[Any], seed: int) -> tuple[Tensor, ...]:
    """Inputs for a file alone: normal floats and ones, at size 1 where a dimension may vary.

    Args:
        declared: What ``InferenceSession.get_inputs()`` gives.
        seed: For the floats. Integers and flags are one: no mask that hides all, a valid index.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for value in declared:
        if value.type not in _ORT_DTYPES:
            raise ExportError(
                f"cannot make up input {value.name!r} of type {value.type}; pass inputs=[...]"
            )
        dtype = _ORT_DTYPES[value.type]
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.ones(shape, dtype=dtype))
    return tuple(tensors)
