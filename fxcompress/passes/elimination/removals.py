"""Removals from an inverse Gram matrix.

With g = (K + λI)⁻¹ and F = gKg, the rows i that are left have d_i² = F_ii / g_ii². Removing row i::

    x = g_{:,i} / √g_ii     f = F_{:,i} / √g_ii     z = f - x F_ii / (2 g_ii)
    g ← g - x xᵀ            F ← F - x zᵀ - z xᵀ

(F ← (I - g e_i eᵢᵀ / g_ii) F (…)ᵀ: a sum of squares stays one, where 1/g_ii - λ‖g_i‖²/g_ii² would
cancel.) The same holds of any F = V Vᵀ of which the rows V follow g, V ← V - g_{:,i} V_i / g_ii,
as weights do that are refitted. A unit may be several rows, with g_ii = L Lᵀ in the place of its
square root; then V is downdated and not F, for there are mostly fewer columns than rows::

    x = g_{:,i} L⁻ᵀ         c = L⁻¹ V_i             g ← g - x xᵀ            V ← V - x c
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.passes.elimination.lazy import Downdates


class Removals(Downdates):
    """Removals of single rows."""

    def _diagonal(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal().clone()

    @property
    def squares(self) -> Tensor:
        """d² at every place; infinite where the row is gone."""
        g = self.diagonals[0].clamp(min=0)
        return 1 / g if len(self.diagonals) == 1 else self.diagonals[1].clamp(min=0) / g.square()

    def damages(self, places: slice, own: Tensor | None = None) -> Tensor:
        """tr((g_ii)⁻¹ F_ii) at some places, meaningless where the unit is gone.

        Args:
            places: Which.
            own: What is in the place of the F_ii there; None for them.
        """
        f = self.diagonals[-1][places] if own is None else own
        return f / self.diagonals[0][places].clamp(min=1e-300)

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

    def _column(self, matrix: Tensor, place: int) -> Tensor:
        end = self.panel_end(place)
        if end == len(matrix):
            return matrix[place]
        return torch.cat([matrix[place, :end], matrix[end:, place]])


class BlockRemovals(Downdates):
    """Removals of units of several adjacent rows; diagonals are blocks, (units, rows, rows)."""

    def __init__(self, g: Tensor, v: Tensor | None, height: int) -> None:
        """Start from g, which is overwritten, and V, shape (n, columns), if that follows."""
        self.height = height
        super().__init__(g, None)
        self.v = v
        if v is not None:
            own = v.unflatten(0, (-1, height))
            self.diagonals.append(own @ own.mT)
            self.right = v.new_empty(self.vectors.shape[1], v.shape[1])

    def _diagonal(self, matrix: Tensor) -> Tensor:
        blocks = matrix.unflatten(1, (-1, self.height)).unflatten(0, (-1, self.height))
        found: Tensor = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0).clone()
        return found

    def damages(self, places: slice, own: Tensor | None = None) -> Tensor:
        """As those of single rows."""
        f = self.diagonals[-1][places] if own is None else own
        solved: Tensor = torch.linalg.solve(self.diagonals[0][places], f)
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, place: int) -> None:
        """Remove the rows of the unit at `place`."""
        at = slice(place * self.height, (place + 1) * self.height)
        left = self.vectors[0, : self.count]
        across = self._held(at) - left[:, at].mT @ left
        factor = torch.linalg.cholesky(across[:, at])
        x = torch.linalg.solve_triangular(factor, across, upper=False)
        own = x.unflatten(1, (-1, self.height)).movedim(1, 0)
        if self.v is not None:
            self._follow(self.v, at, factor, own)
            self.diagonals[1][place] = 0
        self.diagonals[0] -= own.mT @ own
        self.diagonals[0][place] = torch.eye(self.height).to(x)
        self.vectors[0, self.count : self.count + self.height] = x
        self.gone.append(place)
        self.count += self.height

    def _follow(self, v: Tensor, at: slice, factor: Tensor, own: Tensor) -> None:
        """V_j V_jᵀ of every unit after V_j -= x_j c, and c."""
        left, right = self.vectors[0, : self.count], self.right[: self.count]
        change = torch.linalg.solve_triangular(factor, v[at] - left[:, at].mT @ right, upper=False)
        given = (v @ change.mT).addmm_(left.mT, right @ change.mT, alpha=-1)
        cross = given.unflatten(0, (-1, self.height)) @ own
        self.diagonals[1] += own.mT @ (change @ change.mT) @ own - cross - cross.mT
        self.right[self.count : self.count + self.height] = change

    def _held(self, at: slice) -> Tensor:
        """The rows of g as last carried out."""
        (g,), end = self.matrices, self.panel_end(at.start)
        return g[at] if end == len(g) else torch.cat([g[at, :end], g[end:, at].mT], 1)

    def carry_out(self) -> None:
        if self.v is not None:
            self.v.addmm_(self.vectors[0, : self.count].mT, self.right[: self.count], alpha=-1)
        super().carry_out()

    def _shrink(self) -> Tensor:
        stay = super()._shrink()
        if self.v is not None:
            self.v = self.v[stay]
        return stay
