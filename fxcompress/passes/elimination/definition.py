"""The eliminations that follow the changing rows at every step, and cannot be downdated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.passes.elimination.scores import inverse, scores

Choose = Callable[[Tensor], int]
"""The row to remove, from the distances of all rows; infinite where they are gone."""

Scale = Callable[[Tensor], Tensor]
"""What the rows are multiplied by, from the coefficients of the removed one on them."""


@dataclass(frozen=True, eq=False)
class Trail:
    """The removals: which row went at each step, its distance then, its coefficients on the rest.

    Attributes:
        order: Shape (r,).
        distances: Shape (r,).
        coefficients: Shape (r, n).
    """

    order: list[int]
    distances: Tensor
    coefficients: Tensor


def refit(rows: Tensor, steps: int, lam: float, scale: Scale, choose: Choose) -> Trail:
    """Scores of the rows as they are after every change, from a factorisation at each step."""
    n, m = rows.shape
    gram = rows @ rows.T
    product, alive = rows.new_ones(n), torch.arange(n, device=rows.device)
    order: list[int] = []
    distances, coefficients = rows.new_empty(steps), rows.new_zeros(steps, n)
    for step in range(steps):
        own = product[alive]
        if len(alive) > m:
            near, combine = _dual(rows[alive] * own[:, None], lam)
        else:
            near, combine = _primal(gram[alive][:, alive] * own * own[:, None], lam)
        full = rows.new_full((n,), torch.inf)
        full[alive] = near
        unit = choose(full)
        place = int((alive == unit).nonzero())
        found = combine(place)
        distances[step], coefficients[step, alive] = near[place], found
        coefficients[step, unit] = 0
        product[alive] = own * scale(found)
        order.append(unit)
        alive = alive[alive != unit]
    return Trail(order, distances, coefficients)


Fit = tuple[Tensor, Callable[[int], Tensor]]


def _primal(gram: Tensor, lam: float) -> Fit:
    """Distances, and the coefficients of any one row (with -1 on itself)."""
    g = inverse(gram, lam)
    diagonal = g.diagonal()
    squares = (diagonal - lam * g.square().sum(1)).clamp(min=0)
    return squares.sqrt() / diagonal, lambda place: -g[place] / diagonal[place]


def _dual(rows: Tensor, lam: float) -> Fit:
    solved = rows @ inverse(rows.T @ rows, lam)
    rest = 1 - (rows * solved).sum(1)
    return lam * solved.norm(dim=1) / rest, lambda place: (rows @ solved[place]) / rest[place]


def authors(rows: Tensor, steps: int, lam: float, scale: Scale, choose: Choose) -> Trail:
    """The authors' published programs: coefficients are solved once, of the original rows.

    Afterwards the column of what went is dropped, the columns of the others are divided by what
    their rows were multiplied by (equation 16), and the distances are those between the original
    rows left and what these coefficients make of them.
    """
    matrix = scores(rows, lam).coefficients
    left = rows.clone()
    alive = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    order: list[int] = []
    distances, coefficients = rows.new_empty(steps), rows.new_zeros(steps, len(rows))
    for step in range(steps):
        near = (matrix @ left - left).norm(dim=1).masked_fill(~alive, torch.inf)
        unit = choose(near)
        found = matrix[unit].masked_fill(~alive, 0)
        distances[step], coefficients[step] = near[unit], found
        alive[unit] = False
        left[unit] = 0
        matrix[:, unit] = 0
        matrix[alive] = matrix[alive] / scale(found)
        order.append(unit)
    return Trail(order, distances, coefficients)
