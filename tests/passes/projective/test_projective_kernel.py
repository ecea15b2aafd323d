"""The kernel of a ReLU: expected products of activations in place of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.errors import PlanError
from fxcompress.passes import Projective
from fxcompress.passes.projective.vectors import vectors_of
from programs import program
from projected import DOUBLE, mlp, parameter, weight


def test_the_kernel_is_the_expected_product_of_activations() -> None:
    found = fx.compile(mlp(4, 6, 3), (torch.randn(2, 4, dtype=DOUBLE),))
    (vectors,) = vectors_of(found, found.groups[0], kernel="arccos")
    rows = torch.cat([parameter(found, "0.weight"), parameter(found, "0.bias")[:, None]], 1)
    h = F.relu(torch.randn(400_000, 5, dtype=DOUBLE) @ rows.T)
    # 400,000 draws: a standard error of about 2e-3 of the diagonal
    torch.testing.assert_close(vectors.gram, h.T @ h / len(h), rtol=0.05, atol=0.01)


def test_golden_kernel(shared: Path) -> None:
    arrays = dict(np.load(shared / "golden" / "arccos_gram.npz"))
    n, m = arrays["W"].shape
    net = nn.Sequential(nn.Linear(m, n), nn.ReLU(), nn.Linear(n, 2)).double()
    weight(net, 0).copy_(torch.tensor(arrays["W"]))
    weight(net, 0, "bias").copy_(torch.tensor(arrays["b"]))
    found = fx.compile(net, (torch.randn(2, m, dtype=DOUBLE),))
    (vectors,) = vectors_of(found, found.groups[0], kernel="arccos")
    np.testing.assert_allclose(vectors.gram.numpy(), arrays["K"], rtol=1e-9, atol=1e-10)


def test_the_kernel_is_for_relu_alone() -> None:
    found = program("mlp")
    method = Projective(kernel="arccos", reconstruction="linear")
    method.score(found, found.group("first"))
    with pytest.raises(PlanError, match=r"group second.*ReLU alone.*gelu"):
        method.score(found, found.group("second"))


def test_products_of_units_behind_a_relu_are_no_sums_of_them() -> None:
    """``addcmul`` begins like ``add``."""

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).relu()
            out: Tensor = self.head(torch.addcmul(h, h, h))
            return out

    found = fx.compile(Squares().double(), (torch.randn(2, 4, dtype=DOUBLE),))
    method = Projective(kernel="arccos", reconstruction="linear")
    with pytest.raises(PlanError, match=r"ReLU alone.*addcmul"):
        method.score(found, found.groups[0])
