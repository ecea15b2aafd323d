"""Which inputs of linear maps can be done without, and how the rest stand in for them.

A map with weights V (one row for each input) gives Vᵀh of inputs h with Gram matrix K. Without the
inputs P, and with V_K + (K_KK + λI)⁻¹ K_KP V_P for the others, it gives the nearest thing to what
it gave, by least squares with a ridge on the change. (Where the others have changed as well, to h',
it is (K'_KK + λI)⁻¹ (E[h'_K hᵀ] V + λ V_K).) One input after another, the loss of removing block i
and refitting all the others is tr(V_iᵀ (M_ii)⁻¹ V_i) with M = (K + λI)⁻¹: the rule of the optimal
brain surgeon for a quadratic loss (Hassibi & Stork, 1993, eq. 5), of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxcompress.errors import PlanError

WIDTH = 256
"""How many columns of downdates are applied at once."""


@dataclass(frozen=True, eq=False)
class System:
    """One linear map with the moments of its inputs.

    Attributes:
        gram: K, float64, shape (blocks, n, n); blocks are maps of their own.
        columns: V, shape (blocks, n, outputs).
        lambda_rel: λ as a share of the mean of K's diagonal.
        where: What it is, for messages.
        cross: E[h' hᵀ] where K is that of other inputs h' and the map is to give what it gave of
            h; None where they are the same.
    """

    gram: Tensor
    columns: Tensor
    lambda_rel: float
    where: str
    cross: Tensor | None = None

    @property
    def ridge(self) -> Tensor:
        """λ of each block; 1 where there is no signal at all."""
        level = self.gram.diagonal(dim1=1, dim2=2).mean(1)
        return torch.where(level > 0, self.lambda_rel * level, 1.0)

    @property
    def ridged(self) -> Tensor:
        """K + λI."""
        eye = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype, device=self.gram.device)
        return self.gram + self.ridge[:, None, None] * eye

    @cached_property
    def energy(self) -> float:
        """tr(Vᵀ K V), summed over blocks: the mean square of what the map gives."""
        return float((self.columns * (self.gram @ self.columns)).sum())

    def inverse(self) -> Tensor:
        """(K + λI)⁻¹.

        Raises:
            PlanError: It is singular, to the precision of its entries.
        """
        inverse: Tensor = torch.cholesky_inverse(self._factor(self.ridged))
        return inverse

    def refitted(self, kept: Tensor) -> Tensor:
        """V of the same shape, refitted on the inputs `kept`, shape (blocks, n), zero elsewhere."""
        new = torch.zeros_like(self.columns)
        ridged, ridge = self.ridged, self.ridge
        wanted = (self.gram if self.cross is None else self.cross) @ self.columns
        for block, stay in enumerate(kept):
            rows = stay.nonzero().flatten()
            factor = self._factor(ridged[block][rows][:, rows])
            right = wanted[block, rows] + ridge[block] * self.columns[block, rows]
            new[block, rows] = torch.cholesky_solve(right, factor)
        return new

    def _factor(self, matrix: Tensor) -> Tensor:
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()):
            raise PlanError(
                f"the inputs of {self.where} depend on each other on the calibration data, so "
                f"lambda_rel={self.lambda_rel} leaves many solutions; give a larger lambda_rel, or "
                "more data"
            )
        return factor


class Greedy:
    """Removes blocks of inputs from several maps at once, the cheapest first.

    A unit is one block of rows in every map; its damage is the sum over maps of the loss that
    refitting leaves, each as a share of what the map gives.
    """

    def __init__(self, systems: Iterable[System], cells: int, units: int, updates: bool) -> None:
        """Start with all units of all cells; `updates` refits the weights on the way."""
        own = [system for system in systems if system.energy > 0]
        self.cells, self.units, self.updates = cells, units, updates
        self.maps = [_Map(system, cells, units, updates) for system in own]
        device = own[0].gram.device if own else torch.device("cpu")
        self.gone = torch.zeros(cells, units, dtype=torch.bool, device=device)

    def importance(self) -> Tensor:
        """Scores (cells, units) that sort units in the order they go: the largest damage so far,
        raised a little at every step so that no two are equal.
        """
        found = torch.full((self.cells, self.units), torch.nan, dtype=torch.float64)
        level = 0.0
        for _ in range(self.units):
            for cell in range(self.cells):  # in turn, so that all cells always have the same width
                unit, damage = self._next(cell)
                level = max(damage, level * (1 + 1e-12) + 1e-300)
                found[cell, unit] = level
                self._remove(cell, unit)
        return found.to(self.gone.device)

    def _next(self, cell: int) -> tuple[int, float]:
        damage = torch.zeros(self.units, dtype=torch.float64, device=self.gone.device)
        for one in self.maps:
            damage = damage + one.damage(cell)
        unit = int(damage.masked_fill(self.gone[cell], torch.inf).argmin())
        return unit, float(damage[unit].clamp(min=0))

    def _remove(self, cell: int, unit: int) -> None:
        self.gone[cell, unit] = True
        for one in self.maps:
            one.remove(cell, unit)


class _Map:
    """The inputs of one map, cell by cell: in one matrix where it sums over cells as well."""

    def __init__(self, system: System, cells: int, units: int, updates: bool) -> None:
        inverse, columns = system.inverse(), system.columns
        self.weight, self.units = 1 / system.energy, units
        self.joint = len(inverse) == 1
        count = units * (cells if self.joint else 1)
        pairs = zip(inverse, columns, strict=True)
        self.blocks = [_Block(matrix, own, count, updates) for matrix, own in pairs]

    def _block(self, cell: int) -> tuple[_Block, int]:
        """What holds a cell, and the number of its first unit there."""
        return (self.blocks[0], cell * self.units) if self.joint else (self.blocks[cell], 0)

    def damage(self, cell: int) -> Tensor:
        """What removing each unit of a cell costs; of one that is gone it means nothing."""
        block, start = self._block(cell)
        return block.damage(slice(start, start + self.units)) * self.weight

    def remove(self, cell: int, unit: int) -> None:
        """Take a unit out, and give the others its share."""
        block, start = self._block(cell)
        block.remove(start + unit)


class _Block:
    """An inverse Gram matrix M and the weights V while units, each a few rows, are removed.

    Removing the rows i is M -= w wᵀ and V -= w c, with w = M_:i L⁻ᵀ, c = L⁻¹ V_i and M_ii = L Lᵀ.
    The products are put off until `WIDTH` columns of w have come together and then applied as one,
    to what is left; of M only the diagonal blocks are always up to date, and of V the products
    V_j V_jᵀ, which is all that the damage tr(M_jj⁻¹ V_j V_jᵀ) asks for.
    """

    def __init__(self, inverse: Tensor, columns: Tensor, count: int, updates: bool) -> None:
        self.inverse, self.columns, self.updates = inverse, columns, updates
        self.rows = torch.arange(len(inverse), device=inverse.device).unflatten(0, (count, -1))
        self.alive = torch.ones(count, dtype=torch.bool, device=inverse.device)
        own = columns[self.rows]
        self.products = own @ own.mT
        self.corners = inverse[self.rows.unsqueeze(2), self.rows.unsqueeze(1)]
        self.left, self.right = inverse.new_empty(0, 0), columns.new_empty(0, 0)
        self._clear()

    def damage(self, units: slice) -> Tensor:
        """tr(V_iᵀ (M_ii)⁻¹ V_i) of every unit."""
        corners, products = self.corners[units], self.products[units]
        if corners.shape[1] == 1:
            return (products / corners.clamp(min=1e-300)).flatten()
        solved: Tensor = torch.linalg.solve(corners, products)
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, unit: int) -> None:
        """Take the rows of a unit out, and give the others their share."""
        at = self.rows[unit]
        left, right = self.left[:, : self.done], self.right[: self.done]
        across = self.inverse[at].T - left @ left[at].T
        factor = torch.linalg.cholesky(across[at])
        step = torch.linalg.solve_triangular(factor, across.T, upper=False).T
        blocks = step[self.rows] * self.alive[:, None, None]
        if self.updates:
            now = self.columns[at] - left[at] @ right
            change = torch.linalg.solve_triangular(factor, now, upper=False)
            self._update_products(blocks, change)
            self.right[self.done : self.done + len(at)] = change
        self.corners -= blocks @ blocks.mT
        self.left[:, self.done : self.done + len(at)] = step
        self.done += len(at)
        self._forget(unit)

    def _update_products(self, blocks: Tensor, change: Tensor) -> None:
        """V_j V_jᵀ of every unit after V_j -= w_j c."""
        left, right = self.left[:, : self.done], self.right[: self.done]
        given = self.columns @ change.T - left @ (right @ change.T)
        cross = blocks @ given[self.rows].mT
        self.products += blocks @ (change @ change.T) @ blocks.mT - cross - cross.mT

    def _forget(self, unit: int) -> None:
        self.alive[unit] = False
        self.products[unit] = 0
        self.corners[unit] = torch.eye(self.corners.shape[1]).to(self.corners)
        if self.done + self.rows.shape[1] > self.left.shape[1]:
            self._apply()

    def _apply(self) -> None:
        """Bring what is left up to date, and drop what is gone."""
        stay = self.rows[self.alive].flatten()
        left = self.left[stay, : self.done]
        self.inverse = self.inverse[stay][:, stay].addmm_(left, left.T, alpha=-1)
        self.columns = self.columns[stay].addmm_(left, self.right[: self.done], alpha=-1)
        self.rows[self.alive] = torch.arange(len(stay), device=stay.device).reshape(
            -1, self.rows.shape[1]
        )
        self.rows[~self.alive] = 0  # of no matter; they only have to lie inside
        self._clear()

    def _clear(self) -> None:
        width = max(WIDTH, self.rows.shape[1])
        self.left = self.inverse.new_zeros(len(self.inverse), width)
        self.right = self.columns.new_zeros(width, self.columns.shape[1])
        self.done = 0
