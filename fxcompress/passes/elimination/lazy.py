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

from bisect import bisect_right
from itertools import pairwise

import torch
from torch import Tensor

BLOCK = 64
PANELS = 6
LARGE = 2048
"""From here on only panels are kept up to date; below, that saves less than it costs."""
SHRINK = 0.9


class Removals:
    """What is left of g and F while rows are removed.

    Places count the rows still held; `units` are the rows they stand for, ascending.
    """

    def __init__(self, g: Tensor, f: Tensor | None) -> None:
        """Start from g and F, which are overwritten; F is g itself where it is None (λ = 0)."""
        self.matrices: tuple[Tensor, ...] = (g,) if f is None else (g, f)
        self.units = torch.arange(len(g), device=g.device)
        self.edges = _edges(len(g))
        self.diagonals = [matrix.diagonal().clone() for matrix in self.matrices]
        self._begin()

    def _begin(self) -> None:
        g = self.matrices[0]
        self.gone: list[int] = []
        self.vectors = g.new_empty(len(self.matrices), BLOCK, len(g))
        self.count = 0

    @property
    def squares(self) -> Tensor:
        """d² at every place; infinite where the row is gone."""
        g = self.diagonals[0].clamp(min=0)
        return 1 / g if len(self.diagonals) == 1 else self.diagonals[1].clamp(min=0) / g.square()

    def remove(self, place: int) -> Tensor:
        """Remove the row at `place`; its coefficients, meaningless on those gone and on itself."""
        columns = self._columns(place)
        pivot = float(columns[0][place])
        x = torch.mul(columns[0], pivot**-0.5, out=self.vectors[0, self.count])
        self.diagonals[0].addcmul_(x, x, value=-1)
        if len(columns) > 1:
            share = float(columns[1][place]) / pivot / 2
            z = self.vectors[1, self.count]
            torch.mul(columns[1], pivot**-0.5, out=z).sub_(x, alpha=share)
            self.diagonals[1].addcmul_(x, z, value=-2)
            self.diagonals[1][place] = torch.inf
        else:
            self.diagonals[0][place] = 0
        self.gone.append(place)
        self.count += 1
        return columns[0] / -pivot

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
        return [held[0] - seen[0], torch.addmv(held[1] - seen[1], z.T, own[0], alpha=-1)]

    @property
    def full(self) -> bool:
        """Whether the block must be carried out before the next removal."""
        return self.count == BLOCK

    def carry_out(self) -> None:
        """Update the matrices, and drop rows that are gone once there are enough of them."""
        both = self.vectors[:, : self.count]
        for start, end in pairwise(self.edges):
            rows, columns = both[..., start:end], both[..., :end]
            self.matrices[0][start:end, :end].addmm_(rows[0].T, columns[0], alpha=-1)
            for f in self.matrices[1:]:
                left, right = rows.flip(0).flatten(0, 1), columns.flatten(0, 1)
                f[start:end, :end].addmm_(left.T, right, alpha=-1)
        self.count = 0
        if len(self.units) - len(self.gone) <= SHRINK * len(self.units):
            self._shrink()

    def _shrink(self) -> None:
        alive = torch.ones(len(self.units), dtype=torch.bool)
        alive[self.gone] = False
        stay = alive.nonzero().flatten()
        # A panel ends at the same row as before: to the right of it nothing is up to date.
        self.edges = sorted(set(torch.searchsorted(stay, torch.tensor(self.edges)).tolist()))
        stay = stay.to(self.units.device)
        self.matrices = tuple(matrix[stay][:, stay] for matrix in self.matrices)
        self.diagonals = [diagonal[stay] for diagonal in self.diagonals]
        self.units = self.units[stay]
        self._begin()

    def _column(self, matrix: Tensor, place: int) -> Tensor:
        end = self.edges[bisect_right(self.edges, place)]
        if end == len(matrix):
            return matrix[place]
        return torch.cat([matrix[place, :end], matrix[end:, place]])


def spread(g: Tensor, lam: float) -> Tensor:
    """F = gKg = g - λg², as far as `Removals` reads it."""
    f = g.clone()
    for start, end in pairwise(_edges(len(g))):
        f[start:end, :end].addmm_(g[start:end], g[:, :end], alpha=-lam)
    return f


def _edges(size: int) -> list[int]:
    """Where panels of rows begin and end; each is kept up to its end, and so the lower half."""
    panels = PANELS if size >= LARGE else 1
    return [round(size * number / panels) for number in range(panels + 1)]
