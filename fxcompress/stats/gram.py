"""Running Gram matrices."""

from __future__ import annotations

from torch import Tensor

from fxcompress.stats.statistic import Sums


class Gram(Sums[Tensor]):
    """Σ x xᵀ over the columns x of batches of shape (…, n, samples), float64.

    A product over one batch is taken in the batch's own type.
    """

    def __init__(self, zeros: Tensor | None = None) -> None:
        """Start from zeros, of a shape known before the first batch where there may be none."""
        super().__init__()
        if zeros is not None:
            self.sums["gram"] = zeros

    def update(self, batch: Tensor, weight: float = 1.0) -> None:
        """Take one more batch into account.

        Args:
            batch: Shape (…, n, samples).
            weight: What its products count.
        """
        new = batch @ batch.mT
        self.add("gram", new if weight == 1 else weight * new)
        self.count += batch.shape[-1]

    @property
    def total(self) -> Tensor:
        """Σ x xᵀ, shape (…, n, n)."""
        return self.sums["gram"]
