"""Running moments of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxcompress.stats.statistic import Sums


class GradientSums(Sums[Mapping[str, Tensor]]):
    """Σ g of the gradients of parameters by name, and Σ g² where asked for.

    Sums are in float32, of float64 gradients in float64. `count` is for the caller to set: how many
    samples there were, with a batch's gradient that of the sum of its samples' losses.
    """

    def __init__(self, parameters: Mapping[str, Tensor], squares: bool = False) -> None:
        """Start with zeros for every parameter, for some may never be reached by a gradient."""
        super().__init__()
        self.squared = squares
        for name, value in parameters.items():
            self.sums[f"mean.{name}"] = torch.zeros_like(value, dtype=_wide(value))

    def update(self, batch: Mapping[str, Tensor]) -> None:
        for name, value in batch.items():
            self.add(f"mean.{name}", value)
            if self.squared:
                self.add(f"square.{name}", value.to(_wide(value)).square(), _wide(value))

    def means(self, kind: str) -> dict[str, Tensor]:
        """The sums of a kind, ``mean`` or ``square``, divided by the number of samples."""
        start = f"{kind}."
        own = {name: total for name, total in self.sums.items() if name.startswith(start)}
        return {name.removeprefix(start): total / self.count for name, total in own.items()}


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32
