"""The whole elimination without a ridge as one LAPACK call."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxcompress.passes.elimination.definition import Trail


def pivoted(g: Tensor, steps: int) -> Trail:
    """Remove the row with the largest g_ii, again and again: a Cholesky factorisation of
    g = (WWᵀ)⁻¹ that pivots on the largest diagonal entry.

    Without a ridge d_i = 1/√g_ii, and removing a row takes the Schur complement of g. With
    g[p, p] = UᵀU, step t removes row p_t at the distance 1/U_tt, with coefficients -U_{t,j}/U_tt.
    """
    from scipy.linalg import lapack  # slow to import

    upper, order, _, _ = lapack.dpstrf(g.cpu().numpy().T, overwrite_a=True)
    order = np.asarray(order) - 1
    pivots = upper.diagonal()[:steps]
    n = len(order)
    coefficients = np.zeros((steps, n))
    for step in range(steps):
        coefficients[step, order[step + 1 :]] = -upper[step, step + 1 :] / pivots[step]
    return Trail(
        order[:steps].tolist(),
        torch.from_numpy(1 / pivots).to(g.device),
        torch.from_numpy(coefficients).to(g.device),
    )
