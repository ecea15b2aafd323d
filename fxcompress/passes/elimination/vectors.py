"""What is eliminated from, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from fxcompress.arguments import Checked, Holds, Index, Matrix, Square, checked
from fxcompress.errors import PlanError

Double = Annotated[Matrix, Holds("in float64", lambda value: value.dtype == torch.float64)]
SAFE = (0.05, 4.0)
"""What the factors of rows are clipped to on request."""


@dataclass(frozen=True, eq=False)
class Vectors(Checked):
    """n vectors, known by their Gram matrix K, and by their rows W (K = WWᵀ) where there are any.

    Attributes:
        gram: K, float64, shape (n, n).
        rows: W, float64, shape (n, m), or None.
    """

    gram: Double
    rows: Double | None = None

    @classmethod
    @checked(PlanError)
    def of_rows(cls, rows: Matrix) -> Vectors:
        """Vectors with coordinates, shape (n, m)."""
        rows = rows.detach().double()
        return cls(rows @ rows.T, rows)

    @classmethod
    @checked(PlanError)
    def of_gram(cls, gram: Square) -> Vectors:
        """Vectors of which only the products are known; positive semidefinite, shape (n, n)."""
        return cls(gram.detach().double())

    @property
    def factor(self) -> Tensor:
        """Rows with these products: the vectors' own, or a square root of K."""
        if self.rows is not None:
            return self.rows
        values, vectors = torch.linalg.eigh(self.gram)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root


@dataclass(frozen=True, eq=False)
class Elimination:
    """What went, in which order.

    Attributes:
        units: n.
        order: The unit removed at each step, shape (r,).
        distances: Its distance to the others then, shape (r,).
        criteria: What was minimised: the distance times the unit's weight, shape (r,).
        coefficients: Its coefficients on those left then, zero on those gone, shape (r, n).
        clipped: How many factors of rows were clipped while scores followed them.
    """

    units: int
    order: Tensor
    distances: Tensor
    criteria: Tensor
    coefficients: Tensor = field(repr=False)
    clipped: int = 0

    @checked(PlanError)
    def kept(self, steps: Index | None = None) -> Tensor:
        """The units left after that many steps, ascending."""
        stay = torch.ones(self.units, dtype=torch.bool)
        stay[self.order[:steps].cpu()] = False
        return stay.nonzero().flatten()

    @cached_property
    def importance(self) -> Tensor:
        """A score of each unit that sorts them in the order they go, shape (n,).

        It is the running maximum of what was minimised, larger with every step; what never goes
        scores more than all that does.
        """
        values = self.criteria.cummax(0).values.tolist() if len(self.criteria) else [0.0]
        for step in range(1, len(values)):
            values[step] = max(values[step], _next(values[step - 1]))
        found = torch.full((self.units,), _next(values[-1]), dtype=torch.float64)
        found[self.order.cpu()] = torch.tensor(values[: len(self.order)], dtype=torch.float64)
        return found.to(self.order.device)

    @checked(PlanError)
    def factors(
        self, share: float, steps: Index | None = None, safe: bool = False
    ) -> tuple[Tensor, int]:
        """What rows are multiplied by when the removed ones are given back in part.

        Args:
            share: φ, the part: each removal multiplies row j by 1 + φ q_j (equations 6 to 8).
            steps: How many removals count; None for all.
            safe: Clip each factor to [0.05, 4].

        Returns:
            The products, shape (n,), and how many factors were clipped.
        """
        each = 1 + share * self.coefficients[:steps]
        clipped = (each < SAFE[0]) | (each > SAFE[1]) if safe else torch.zeros(0)
        return (each.clamp(*SAFE) if safe else each).prod(0), int(clipped.sum())


def _next(value: float) -> float:
    return math.nextafter(value, math.inf)
