"""Running first and second moments, entry by entry."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.stats.statistic import Sums


def products(rows: Tensor) -> Tensor:
    """Rows in the type that products are taken in: float32 is enough over one batch, and twice as
    fast; sums over batches are float64.
    """
    return rows if rows.dtype == torch.float64 else rows.to(torch.float32)


class Powers(Sums[Tensor]):
    """Σ x and Σ x² over the last axis of batches of shape (…, samples), float64."""

    def update(self, batch: Tensor) -> None:
        square = torch.linalg.vector_norm(batch, dim=-1, dtype=torch.float64).square()
        self.add("first", products(batch).sum(-1))
        self.add("second", square)
        self.count += batch.shape[-1]

    @property
    def first(self) -> Tensor:
        """Σ x."""
        return self.sums["first"]

    @property
    def second(self) -> Tensor:
        """Σ x²."""
        return self.sums["second"]
