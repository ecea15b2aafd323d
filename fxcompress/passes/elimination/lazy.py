"""Symmetric matrices from which rows are removed, written down at once and carried out in blocks.

Each removal takes products of vectors from the matrices. Only their diagonals and the column of the
next row are needed at each step, so the updates are kept as vectors and carried out together:
matrix products instead of one pass over the matrices for every removal. Of the symmetric matrices,
panels of rows up to the diagonal are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import pairwise

import torch
from torch import Tensor

BLOCK = 64
PANELS = 6
LARGE = 2048
"""From here on only panels are kept up to date; below, that saves less than it costs."""
SHRINK = 0.9


class Downdates(ABC):
    """g and F while units are removed: g ← g - x xᵀ and F ← F - x zᵀ - z xᵀ; see `removals`.

    Places count the units still held; `units` are those they stand for, ascending.

    Attributes:
        height: How many adjacent rows a unit is.
    """

    height = 1

    def __init__(self, g: Tensor, f: Tensor | None) -> None:
        """Start from g and F, which are overwritten; F is g itself where it is None (λ = 0)."""
        self.matrices: tuple[Tensor, ...] = (g,) if f is None else (g, f)
        self.units = torch.arange(len(g) // self.height, device=g.device)
        self.edges = _edges(len(g), self.height)
        self.diagonals = [self._diagonal(matrix) for matrix in self.matrices]
        self._begin()

    def _begin(self) -> None:
        g = self.matrices[0]
        self.gone: list[int] = []
        self.vectors = g.new_empty(len(self.matrices), max(BLOCK, self.height), len(g))
        self.count = 0

    @abstractmethod
    def _diagonal(self, matrix: Tensor) -> Tensor:
        """What is always up to date of a matrix, by unit."""

    @property
    def full(self) -> bool:
        """Whether the block must be carried out before the next removal."""
        return self.count + self.height > self.vectors.shape[1]

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

    def _shrink(self) -> Tensor:
        """Drop what is gone; the rows that are left."""
        alive = torch.ones(len(self.units), dtype=torch.bool)
        alive[self.gone] = False
        stay = alive.repeat_interleave(self.height).nonzero().flatten()
        # A panel ends at the same row as before: to the right of it nothing is up to date.
        self.edges = sorted(set(torch.searchsorted(stay, torch.tensor(self.edges)).tolist()))
        stay, alive = stay.to(self.units.device), alive.to(self.units.device)
        both = stay.expand(len(stay), -1)  # five times as fast as an index of the columns
        self.matrices = tuple(m.index_select(0, stay).gather(1, both) for m in self.matrices)
        self.diagonals = [diagonal[alive] for diagonal in self.diagonals]
        self.units = self.units[alive]
        self._begin()
        return stay

    def panel_end(self, row: int) -> int:
        """Where the panel of a row ends: to the right of it only the columns are up to date."""
        return self.edges[bisect_right(self.edges, row)]


def spread(g: Tensor, lam: float) -> Tensor:
    """F = gKg = g - λg², as far as `Removals` reads it."""
    f = g.clone()
    for start, end in pairwise(_edges(len(g))):
        f[start:end, :end].addmm_(g[start:end], g[:, :end], alpha=-lam)
    return f


def _edges(size: int, height: int = 1) -> list[int]:
    """Where panels of rows begin and end, none within a unit; each is kept up to its end, and so
    the lower half.
    """
    panels = PANELS if size >= LARGE else 1
    return [round(size // height * number / panels) * height for number in range(panels + 1)]
