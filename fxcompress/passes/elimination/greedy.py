"""The elimination in its modes, over one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fxcompress.arguments import Data, Index, NotNegative, checked
from fxcompress.errors import PlanError
from fxcompress.passes.elimination.definition import Trail, authors, refit
from fxcompress.passes.elimination.lazy import spread
from fxcompress.passes.elimination.pivoted import pivoted
from fxcompress.passes.elimination.removals import Removals
from fxcompress.passes.elimination.scores import inverse, scores
from fxcompress.passes.elimination.vectors import SAFE, Elimination, Vectors

Rescoring = Literal["exact", "scaled", "static", "authors", "oneshot"]
RESCORING: tuple[Rescoring, ...] = get_args(Rescoring)
TIE = 1e-9
"""Scores this close, relatively, are equal: the first unit goes. Rounding would choose else."""


@checked(PlanError)
def eliminate(
    vectors: Vectors,
    steps: Index,
    lam: NotNegative,
    *,
    rescoring: Rescoring = "static",
    alpha: float = 0.0,
    safe: bool = False,
    weights: Data | None = None,
    among: Tensor | None = None,
) -> Elimination:
    """Remove vectors one after another, each time the one the others reproduce best.

    Args:
        vectors: What to remove from.
        steps: How many go, fewer than there are.
        lam: The ridge λ of the combinations, absolute.
        rescoring: What scores are computed from after a removal. ``static``: the vectors as they
            were, one fast downdate each. ``exact``: as they are once the removed one is given back
            by `alpha`, refitted at every step. ``scaled``: the same, but downdated (with a ridge
            that follows the scales; equal to ``exact`` at λ = 0). ``authors``: what the authors'
            programs do: coefficients solved once. ``oneshot``: the first scores, all at once.
        alpha: The share of a removed vector that goes into the others, as in equation 6.
        safe: Clip the factors of rows to [0.05, 4] on the way.
        weights: What distances are multiplied by before they are compared, shape (n,).
        among: Mask of the vectors that may go, shape (n,); None for all.

    Raises:
        PlanError: Too many steps, or λ = 0 with vectors that depend on each other.
    """
    n = len(vectors.gram)
    for name, each in (("weights", weights), ("among", among)):
        if each is not None and each.shape != (n,):
            raise PlanError(f"{name} has shape {tuple(each.shape)}; it is one entry a unit, ({n},)")
    if among is not None and among.dtype != torch.bool:
        raise PlanError(f"among holds {among.dtype}; give a mask, torch.bool")
    candidates = n if among is None else int(among.sum())
    if not 0 <= steps < max(n, 1) or steps > candidates:
        raise PlanError(
            f"steps={steps} of {n} units cannot go ({candidates} may): at least one must stay"
        )
    run = _Run(vectors, steps, lam, alpha, safe, weights, among)
    if rescoring == "oneshot":
        return run.oneshot()
    if rescoring == "authors":
        return run.done(authors(vectors.factor, steps, lam, run.scale, run.choose))
    if rescoring == "exact" and alpha != 0 and lam != 0:
        return run.done(refit(vectors.factor, steps, lam, run.scale, run.choose))
    if lam == 0 and alpha == 0 and weights is None and among is None and _on_cpu(vectors):
        return run.done(pivoted(inverse(vectors.gram, 0.0), steps))
    return run.done(run.lazy(follow=rescoring != "static" and alpha != 0))


def _first_least(criteria: Tensor, tie: float) -> int:
    """The first of the smallest, up to rounding; zero times infinity is no number and not it."""
    criteria = criteria.nan_to_num(torch.inf)
    return int((criteria <= criteria.min() * (1 + tie)).to(torch.uint8).argmax())


def _on_cpu(vectors: Vectors) -> bool:
    return vectors.gram.device.type == "cpu"


@dataclass(eq=False)
class _Run:
    """One elimination: what it is told, and how many factors it clipped."""

    vectors: Vectors
    steps: int
    lam: float
    alpha: float
    safe: bool
    weights: Tensor | None
    among: Tensor | None
    clipped: int = 0

    def scale(self, coefficients: Tensor) -> Tensor:
        """What the rows are multiplied by when a row with these coefficients goes."""
        factors = 1 + self.alpha * coefficients
        if not self.safe:
            return factors
        bounded = factors.clamp(*SAFE)
        self.clipped += int((bounded != factors).sum())
        return bounded

    def choose(self, distances: Tensor) -> int:
        """The first of the rows with the smallest weighted distance."""
        criteria = distances if self.weights is None else distances * self.weights
        criteria = criteria.masked_fill(~torch.isfinite(distances), torch.inf)
        if self.among is not None:
            criteria = criteria.masked_fill(~self.among, torch.inf)
        return _first_least(criteria, TIE)

    def done(self, trail: Trail) -> Elimination:
        order = torch.tensor(trail.order, dtype=torch.int64, device=trail.distances.device)
        weights = 1 if self.weights is None else self.weights[order]
        return Elimination(
            units=len(self.vectors.gram),
            order=order,
            distances=trail.distances,
            criteria=trail.distances * weights,
            coefficients=trail.coefficients,
            clipped=self.clipped,
        )

    def oneshot(self) -> Elimination:
        """The smallest scores of the first step; each row's coefficients on all others."""
        first = scores(self.vectors.factor, self.lam)
        criteria = first.distances if self.weights is None else first.distances * self.weights
        if self.among is not None:
            criteria = criteria.masked_fill(~self.among, torch.inf)
        order = criteria.argsort(stable=True)[: self.steps]
        coefficients = first.coefficients[order]
        coefficients[:, order] = 0
        return self.done(Trail(order.tolist(), first.distances[order], coefficients))

    def lazy(self, follow: bool) -> Trail:
        """Downdates; `follow` keeps scores in step with the scaled rows diag(u)W, where
        d ← u_i d_i and q_ij ← q_ij u_i / u_j.
        """
        state = Removals(*self._matrices())
        n = len(self.vectors.gram)
        weights = self._squared_weights(n)
        u = state.diagonals[0].new_ones(n)
        order: list[int] = []
        distances, coefficients = u.new_empty(self.steps), u.new_zeros(self.steps, n)
        block: list[Tensor] = []
        for step in range(self.steps):
            squares = state.squares
            criteria = squares if weights is None else squares * weights
            place = _first_least(criteria * u.square() if follow else criteria, 2 * TIE)
            distances[step] = squares[place].sqrt() * u[place]
            found = state.remove(place)
            if follow:
                found = found * u[place] / u
                scale = self.scale(found.index_fill(0, self._places(state), 0))
                u = u * scale
            block.append(found)
            order.append(place)
            if state.full or step + 1 == self.steps:
                units, held = state.units, len(block)
                first = step + 1 - held
                coefficients[first : step + 1, units] = torch.stack(block)
                order[first:] = units[torch.tensor(order[first:], device=units.device)].tolist()
                block.clear()
                state.carry_out()
                if len(state.units) < len(units):
                    stay = torch.isin(units, state.units)
                    u, weights = u[stay], None if weights is None else weights[stay]
        gone = torch.full((n,), self.steps, device=u.device)
        gone[order] = torch.arange(self.steps, device=u.device)
        coefficients.masked_fill_(gone <= torch.arange(self.steps, device=u.device)[:, None], 0)
        return Trail(order, distances, coefficients)

    def _places(self, state: Removals) -> Tensor:
        return torch.tensor(state.gone, device=state.units.device)

    def _squared_weights(self, n: int) -> Tensor | None:
        """What d² is multiplied by; infinite for rows that must stay."""
        if self.weights is None and self.among is None:
            return None
        gram = self.vectors.gram
        squares = gram.new_ones(n) if self.weights is None else self.weights.to(gram).square()
        return squares if self.among is None else squares.masked_fill(~self.among, torch.inf)

    def _matrices(self) -> tuple[Tensor, Tensor | None]:
        """The inverse g, and F = gKg."""
        lam, rows = self.lam, self.vectors.rows
        g = inverse(self.vectors.gram, lam)
        if lam == 0:
            return g, None
        if float(g.diagonal().max()) * lam < 0.5:
            return g, spread(g, lam)
        if rows is not None:
            near = g @ rows if len(rows) <= rows.shape[1] else _dual_rows(rows, lam)
            return g, near @ near.T
        values, vectors = torch.linalg.eigh(self.vectors.gram)
        values = values.clamp(min=0)
        left = vectors * (values.sqrt() / (values + lam))
        return g, left @ left.T


def _dual_rows(rows: Tensor, lam: float) -> Tensor:
    """Rows of gW = W(WᵀW + λI)⁻¹."""
    return rows @ inverse(rows.T @ rows, lam)
