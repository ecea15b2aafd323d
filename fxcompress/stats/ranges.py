"""Running ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from fxcompress.stats.statistic import Statistic


class Range(Statistic[Tensor]):
    """The least and the largest over the last axis of batches of shape (…, samples).

    Attributes:
        least: Shape (…); None before the first batch.
        largest: Of the same shape.
    """

    def __init__(self) -> None:
        self.least: Tensor | None = None
        self.largest: Tensor | None = None

    def update(self, batch: Tensor) -> None:
        self._widen(batch.amin(-1), batch.amax(-1))

    def merge(self, other: Self) -> None:
        if other.least is not None and other.largest is not None:
            self._widen(other.least, other.largest)

    def _widen(self, least: Tensor, largest: Tensor) -> None:
        self.least = least if self.least is None else torch.minimum(self.least, least)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def state_dict(self) -> dict[str, Tensor]:
        if self.least is None or self.largest is None:
            return {}
        return {"least": self.least, "largest": self.largest}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.least, self.largest = state.get("least"), state.get("largest")
