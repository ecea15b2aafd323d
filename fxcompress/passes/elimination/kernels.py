"""Products of functions of random inputs, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxcompress.arguments import Square, checked
from fxcompress.errors import PlanError


@checked(PlanError)
def arc_cosine(gram: Square) -> Tensor:
    """E[relu(w_i·x) relu(w_j·x)] for x ~ N(0, I), from the products w_i·w_j.

    The arc-cosine kernel of degree one (Cho and Saul, 2009)::

        K_ij = ‖w_i‖‖w_j‖ (sin θ + (π - θ) cos θ) / 2π

    Args:
        gram: WWᵀ, shape (n, n); with biases, of rows that end in them.
    """
    lengths = gram.diagonal().clamp(min=0).sqrt()
    products = lengths[:, None] * lengths
    cosine = (gram / torch.where(products > 0, products, 1)).clamp(-1, 1)
    cosine = cosine.fill_diagonal_(1)
    angle = cosine.arccos()
    return products * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
