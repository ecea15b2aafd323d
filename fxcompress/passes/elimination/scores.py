"""How well each vector is reproduced by the others, all from one factorisation.

For rows w_i of W and a ridge λ, with G = WWᵀ + λI and g = G⁻¹ (Projective Pruning, equations 4, 5
and 14; the closed forms follow from block inversion)::

    q_i = -g_{i,:} / g_ii                      the ridge combination of the others nearest to w_i
    d_i = ‖Σ_j q_ij w_j - w_i‖ = ‖(gW)_i‖ / g_ii

All is computed in float64: in float32 the closed form has no correct digit where there are more
rows than columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.arguments import Matrix, NotNegative, Square, checked
from fxcompress.errors import PlanError

Form = Literal["auto", "gram", "dual", "svd"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Distances and coefficients of all rows.

    Attributes:
        distances: d_i, shape (n,).
        coefficients: Row i holds q_i, with zeros on the diagonal, shape (n, n).
    """

    distances: Tensor
    coefficients: Tensor


@checked(PlanError)
def scores(rows: Matrix, lam: NotNegative, form: Form = "auto") -> Scores:
    """The distance of every row to the ridge combinations of the others.

    Args:
        rows: W, shape (n, m).
        lam: λ, the ridge; zero only where the rows are independent.
        form: ``gram`` inverts n by n, ``dual`` m by m (better where n > m), ``svd`` is the most
            exact; ``auto`` takes the dual for n > m, otherwise the Gram matrix, or the SVD where
            that is nearly singular.

    Raises:
        PlanError: λ is zero and some row depends on the others.
    """
    rows = rows.detach().double()
    if form == "auto":
        form = "dual" if rows.shape[0] > rows.shape[1] else "gram"
        if form == "gram" and _nearly_singular(rows, lam):
            form = "svd"
    if form == "dual" and lam == 0:
        raise dependent(rows.shape[0], int(torch.linalg.matrix_rank(rows)))
    return {"gram": _gram, "dual": _dual, "svd": _svd}[form](rows, lam)


@checked(PlanError)
def inverse(gram: Square, lam: NotNegative) -> Tensor:
    """(K + λI)⁻¹ of a positive semidefinite K.

    Raises:
        PlanError: λ is zero and K is singular.
    """
    ridged = gram.clone()
    ridged.diagonal().add_(lam)
    factor, info = torch.linalg.cholesky_ex(ridged)
    n = len(gram)
    pivots = factor.diagonal().square()
    scale = n * torch.finfo(gram.dtype).eps * ridged.diagonal().max() if n else lam
    if int(info) or (lam == 0 and bool((pivots <= scale).any())):
        raise dependent(n, int(torch.linalg.matrix_rank(gram, hermitian=True)), lam)
    return torch.cholesky_inverse(factor)


def dependent(n: int, rank: int, lam: float = 0.0) -> PlanError:
    """Rows that depend on each other have no unique coefficients without a ridge."""
    return PlanError(
        f"{n} units span only {rank} dimensions, so with lam={lam:g} no coefficients are defined; "
        "give a positive lam (the paper's is 1e-3)"
    )


def _nearly_singular(rows: Tensor, lam: float) -> bool:
    """Whether the cancellation of the closed form would cost more than half of the digits."""
    gram = rows @ rows.T
    values = torch.linalg.eigvalsh(gram)
    return bool(lam > 0 and values[0] < 1e-6 * lam)


def _gram(rows: Tensor, lam: float) -> Scores:
    g = inverse(rows @ rows.T, lam)
    diagonal = g.diagonal()
    return Scores((g @ rows).norm(dim=1) / diagonal, _off_diagonal(-g / diagonal[:, None]))


def _dual(rows: Tensor, lam: float) -> Scores:
    """With S = WᵀW + λI, s_i = S⁻¹w_i and h_i = w_i·s_i: g_ii = (1 - h_i)/λ."""
    solved = rows @ inverse(rows.T @ rows, lam)
    rest = 1 - (rows * solved).sum(1)
    return Scores(lam * solved.norm(dim=1) / rest, _off_diagonal(solved @ rows.T / rest[:, None]))


def _svd(rows: Tensor, lam: float) -> Scores:
    """Every sum has positive terms only."""
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    squares = values.square()
    if lam == 0 and (len(rows) > len(values) or _singular(values, rows)):
        raise dependent(len(rows), int(torch.linalg.matrix_rank(rows)))
    ridged = squares + lam
    # Left of a square U nothing is left over; the rounding of that would be divided by λ.
    rest = torch.eye(len(rows), dtype=rows.dtype, device=rows.device) - left @ left.T
    missing = rest / lam if len(rows) > len(values) else torch.zeros_like(rest)
    g = (left / ridged) @ left.T + missing
    diagonal = (left.square() / ridged).sum(1) + missing.diagonal().clamp(min=0)
    distances = (left.square() * squares / ridged.square()).sum(1).sqrt() / diagonal
    return Scores(distances, _off_diagonal(-g / diagonal[:, None]))


def _singular(values: Tensor, rows: Tensor) -> bool:
    return bool(values[-1] <= max(rows.shape) * torch.finfo(rows.dtype).eps * values[0])


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - torch.diag(matrix.diagonal())
