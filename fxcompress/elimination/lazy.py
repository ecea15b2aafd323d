"""Removals from an inverse Gram matrix, written down at once and carried out in blocks.

With g = (K + λI)⁻¹ and F = gKg, the rows i that are left have d_i² = F_ii / g_ii². Removing row i::

    x = g_{:,i} / √g_ii     f = F_{:,i} / √g_ii     z = f - x F_ii / (2 g_ii)
    g ← g - x xᵀ            F ← F - x zᵀ - z xᵀ

(F ← (I - g e_i eᵢᵀ / g_ii) F (…)ᵀ: a sum of squares stays one, where 1/g_ii - λ‖g_i‖²/g_ii² would
cancel.) Only the diagonals and the column of the next row are needed at each step, so the updates
are kept as vectors and carried out together: matrix products instead of one pass over two matrices
for every removal. Of the symmetric matrices, panels of rows up to the diagonal are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
PANELS = 6
SHRINK = 0.9


class Removals:
    """What is left of g and F while rows are removed.

    Places count the rows still held; `units` are the rows they stand for.
    """

    def __init__(self, g: Tensor, f: Tensor | None, block: int = BLOCK) -> None:
        """Start from g and F, which are overwritten; F is g itself where it is None (λ = 0)."""
        self.block = block
        self.matrices: tuple[Tensor, ...] = (g,) if f is None else (g, f)
        self.units = torch.arange(len(g), device=g.device)
        self.edges = torch.linspace(0, len(g), PANELS + 1).round().long().tolist()
        self._begin()

    def _begin(self) -> None:
        g = self.matrices[0]
        self.diagonals = [matrix.diagonal().clone() for matrix in self.matrices]
        self.alive = torch.ones(len(g), dtype=torch.bool, device=g.device)
        self.vectors = g.new_empty(len(self.matrices), self.block, len(g))
        self.count = 0

    def place(self, unit: int) -> int:
        """Where a row stands now."""
        return int(torch.searchsorted(self.units, unit))

    @property
    def squares(self) -> Tensor:
        """d² at every place; infinite where the row is gone."""
        g, f = self.diagonals[0], self.diagonals[-1]
        return (f.clamp(min=0) / g.square()).masked_fill(~self.alive, torch.inf)

    def remove(self, place: int) -> Tensor:
        """Remove the row at `place`; its coefficients on those left, zero on those gone."""
        columns = self._columns(place)
        pivot = columns[0][place]
        root = pivot.sqrt()
        x = columns[0] / root
        self.alive[place] = False
        self.vectors[0, self.count] = x
        self.diagonals[0] -= x.square()
        if len(columns) > 1:
            z = columns[1] / root - x * (columns[1][place] / pivot / 2)
            self.vectors[1, self.count] = z
            self.diagonals[1] -= 2 * x * z
        self.count += 1
        return (-columns[0] / pivot).masked_fill(~self.alive, 0)

    def _columns(self, place: int) -> list[Tensor]:
        """The columns of g and F at a place, with the removals so far."""
        held = [self._column(matrix, place) for matrix in self.matrices]
        if self.count == 0:
            return held
        x = self.vectors[0, : self.count]
        own = self.vectors[:, : self.count, place]
        seen = own @ x
        if len(held) == 1:
            return [held[0] - seen[0]]
        z = self.vectors[1, : self.count]
        return [held[0] - seen[0], held[1] - seen[1] - own[0] @ z]

    @property
    def full(self) -> bool:
        """Whether the block must be carried out before the next removal."""
        return self.count == self.block

    def carry_out(self) -> None:
        """Update the matrices, and drop rows that are gone once there are enough of them."""
        both = self.vectors[:, : self.count]
        for start, end in self._panels:
            rows, columns = both[..., start:end], both[..., :end]
            self.matrices[0][start:end, :end].addmm_(rows[0].T, columns[0], alpha=-1)
            for f in self.matrices[1:]:
                left, right = rows.flip(0).flatten(0, 1), columns.flatten(0, 1)
                f[start:end, :end].addmm_(left.T, right, alpha=-1)
        self.count = 0
        self._shrink()

    def _shrink(self) -> None:
        stay = self.alive.nonzero().flatten()
        if len(stay) > SHRINK * len(self.alive):
            return
        diagonals = [diagonal[stay] for diagonal in self.diagonals]
        self.matrices = tuple(matrix[stay][:, stay] for matrix in self.matrices)
        self.units = self.units[stay]
        self.edges = torch.searchsorted(stay.cpu(), torch.tensor(self.edges)).tolist()
        self._begin()
        self.diagonals = diagonals

    @property
    def _panels(self) -> list[tuple[int, int]]:
        """Row ranges; each is kept up to its end, and so the lower half of the matrix."""
        pairs = zip(self.edges, self.edges[1:], strict=False)
        return [(start, end) for start, end in pairs if start < end]

    def _column(self, matrix: Tensor, place: int) -> Tensor:
        end = next(end for start, end in self._panels if start <= place < end)
        return torch.cat([matrix[place, :end], matrix[end:, place]])
