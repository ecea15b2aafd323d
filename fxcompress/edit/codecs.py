"""Codecs: how the numbers of a parameter are kept in fewer bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from fxcompress.graph.saveable import saveable

Parts = Mapping[str, Tensor]
"""The tensors that stand for a parameter, by name."""


class Codec(ABC):
    """A way to keep a parameter as other tensors.

    A codec is a frozen dataclass, and `fxcompress.io.saveable` so that programs with it can be
    saved. It keeps zeros exactly zero.
    """

    @abstractmethod
    def encode(self, value: Tensor) -> dict[str, Tensor]:
        """The parts that stand for a value; a value that was decoded gives the same value again."""

    @abstractmethod
    def decode(self, parts: Parts) -> Tensor:
        """The value that parts stand for, in the shape and type of the one that was encoded."""

    @abstractmethod
    def bound(self, parts: Parts) -> Tensor:
        """How far a decoded entry may be from the one encoded; broadcasts to the decoded value."""

    @abstractmethod
    def bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """The bytes of all parts for a value of this shape and type."""

    def config(self) -> Mapping[str, Any]:
        """The fields, which make the codec again."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec with these fields."""
        return cls(**config)


@saveable
@dataclass(frozen=True)
class Int8PerRow(Codec):
    """Eight-bit integers with one scale a row, symmetric: ``w ≈ scale · code``, no zero point.

    The scale of a row is its largest magnitude over 127, and 1 for a row of zeros. ``decode`` is
    the operator that exporters write as DequantizeLinear.

    Attributes:
        axis: The axis of the rows: the outputs of a linear map.
    """

    axis: int = 0

    def encode(self, value: Tensor) -> dict[str, Tensor]:
        largest = value.detach().abs().movedim(self.axis, 0).flatten(1).amax(1).double()
        # A subnormal scale has too few bits to stand for its row.
        scales = (largest / _LEVELS).clamp(min=torch.finfo(value.dtype).tiny)
        scales = torch.where(largest == 0, 1.0, scales).to(value.dtype)
        codes = (value.detach().double() / self._along(scales, value.dim()).double()).round()
        return {"codes": codes.clamp(-_LEVELS, _LEVELS).to(torch.int8), "scales": scales}

    def decode(self, parts: Parts) -> Tensor:
        import torch.ao.quantization.fx._decomposed  # registers the operator

        codes, scales = parts["codes"], parts["scales"]
        decoded: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            codes, scales, None, self.axis, -_LEVELS, _LEVELS, torch.int8, out_dtype=scales.dtype
        )
        return decoded

    def bound(self, parts: Parts) -> Tensor:
        """Half a step, and the rounding of scale and product."""
        scales = self._along(parts["scales"], parts["codes"].dim()).double()
        return scales * (0.5 + _LEVELS * torch.finfo(parts["scales"].dtype).eps)

    def bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return prod(shape) + shape[self.axis] * dtype.itemsize

    def _along(self, scales: Tensor, rank: int) -> Tensor:
        """The scales in a shape that broadcasts to the codes."""
        return scales.reshape([-1 if dim == self.axis else 1 for dim in range(rank)])

    def __str__(self) -> str:
        return "INT8 per row"


_LEVELS = 127
