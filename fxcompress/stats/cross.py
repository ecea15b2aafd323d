"""Running moments of pairs of signals."""

from __future__ import annotations

from torch import Tensor

from fxcompress.stats.statistic import Sums

Pair = tuple[Tensor, Tensor]


class Cross(Sums[Pair]):
    """Σ y yᵀ, Σ y xᵀ, Σ x and Σ y over pairs (x, y) of shape (…, n, samples) each, float64."""

    def update(self, batch: Pair) -> None:
        before, after = batch
        self.add("gram", after @ after.mT)
        self.add("cross", after @ before.mT)
        self.add("mean", before.sum(-1))
        self.add("other", after.sum(-1))
        self.count += before.shape[-1]
