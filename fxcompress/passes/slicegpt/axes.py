"""The principal axes of a stream, with or without its mean over units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.stats import Gram

NEAR = 1e-6
"""A cosine this near to 1 is 1, in axes of single precision too."""


@dataclass(frozen=True)
class Tap:
    """Adds x xᵀ / mean(x²) of what a norm reads to a Gram matrix, on the CPU.

    The mean over units is taken out of x where the norm does that.
    """

    gram: Gram
    centred: bool = False

    def __call__(self, value: Tensor) -> None:
        rows = value.detach().flatten(0, -2).to("cpu", torch.float64)
        if self.centred:
            rows = rows - rows.mean(1, keepdim=True)
        square = rows.square().mean(1, keepdim=True)
        rows = rows * torch.where(square > 0, square.rsqrt(), 0.0)
        self.gram.update(rows.mT)


def principal_axes(moment: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """The axes of a stream by what lies in them.

    Args:
        moment: Σ x xᵀ, shape (d, d).
        centred: Whether the mean over units is an axis of its own. It comes first then, with all
            that lies in the others for its value: without it nothing is left of them.

    Returns:
        Eigenvalues, descending, shape (d,), and axes as columns, shape (d, d).
    """
    if not centred:
        values, vectors = torch.linalg.eigh(moment)
        return values.flip(0).clamp(min=0), vectors.flip(1)
    turn = mean_first(len(moment)).to(moment)
    values, vectors = torch.linalg.eigh((turn @ moment @ turn)[1:, 1:])
    values = values.flip(0).clamp(min=0)
    axes = torch.cat([turn[:, :1], turn[:, 1:] @ vectors.flip(1)], 1)
    return torch.cat([values.sum()[None], values]), axes


def mean_first(size: int) -> Tensor:
    """The reflection, shape (size, size), that swaps the first unit's axis with that of the mean.

    It is symmetric, and its first column is 1/√size throughout (Householder).
    """
    normal = torch.full((size,), -(size**-0.5), dtype=torch.float64)
    normal[0] += 1
    square = normal.square().sum().clamp(min=0.5)  # less only for one unit, where it is 0
    return torch.eye(size, dtype=torch.float64) - 2 / square * normal.outer(normal)


def even(axes: Tensor) -> Tensor | None:
    """The same axes in other coordinates: where all units are equal before, all are after.

    Args:
        axes: Orthonormal columns, shape (d, k), of which the first is the mean's.

    Returns:
        Orthonormal columns of the same span, each with the sum ±√(d/k); None where the first axis
        is another.
    """
    share = float(axes[:, 0].sum()) * len(axes) ** -0.5
    if abs(share) < 1 - NEAR:
        return None
    return axes @ mean_first(axes.shape[1]).to(axes)
