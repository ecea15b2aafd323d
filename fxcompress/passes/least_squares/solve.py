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
from fxcompress.passes.elimination.removals import BlockRemovals, Removals


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
        # M is symmetric, and LAPACK's columns are rows of its transpose.
        pairs = zip(inverse.mT, columns, strict=True)
        self.blocks = [_Block(matrix, own, count, updates) for matrix, own in pairs]

    def _block(self, cell: int) -> tuple[_Block, int]:
        """What holds a cell, and the number of its first unit there."""
        return (self.blocks[0], cell * self.units) if self.joint else (self.blocks[cell], 0)

    def damage(self, cell: int) -> Tensor:
        """What removing each unit of a cell costs; of one that is gone it means nothing."""
        block, start = self._block(cell)
        return block.damage(start, start + self.units) * self.weight

    def remove(self, cell: int, unit: int) -> None:
        """Take a unit out, and give the others its share."""
        block, start = self._block(cell)
        block.remove(start + unit)


class _Block:
    """An inverse Gram matrix M and the weights V while units, each a few rows, are removed.

    Removing the rows i is V -= M_:i (M_ii)⁻¹ V_i; or else the weights stay as they were.
    """

    def __init__(self, inverse: Tensor, columns: Tensor, count: int, updates: bool) -> None:
        own: Tensor = columns.unflatten(0, (count, -1))
        self.left: Removals | BlockRemovals
        if own.shape[1] == 1:
            self.left = Removals(inverse, columns @ columns.mT if updates else None)
            self.products = own.square().sum((1, 2))
        else:
            self.left = BlockRemovals(inverse, columns.clone() if updates else None, own.shape[1])
            self.products = own @ own.mT
        self.updates = updates

    def damage(self, start: int, stop: int) -> Tensor:
        """tr(V_iᵀ (M_ii)⁻¹ V_i) of the units from `start` to `stop`."""
        units = self.left.units
        held = slice(*torch.searchsorted(units, units.new_tensor([start, stop])).tolist())
        own = None if self.updates else self.products[units[held]]
        found = self.products.new_zeros(stop - start)
        found[units[held] - start] = self.left.damages(held, own)
        return found

    def remove(self, unit: int) -> None:
        """Take the rows of a unit out, and give the others their share."""
        if self.left.full:
            self.left.carry_out()
        self.left.remove(int(torch.searchsorted(self.left.units, unit)))
