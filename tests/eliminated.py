"""Rows to eliminate, and eliminations from the definition."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.passes.elimination import Rescoring

MODES: tuple[Rescoring, ...] = ("exact", "static", "scaled", "authors")
LAMS = st.sampled_from((1e-5, 1e-3, 0.1, 2.0))


@st.composite
def matrices(draw: st.DrawFn, least: int = 2) -> Tensor:
    """Rows of every shape: more than columns, fewer, equal."""
    n, m = draw(st.integers(least, 9)), draw(st.integers(1, 12))
    return torch.randn(n, m, dtype=torch.float64)


def by_definition(rows: Tensor, lam: float, alive: list[int], unit: int) -> tuple[float, Tensor]:
    """Ridge regression of one row on the others, and how far it misses."""
    others = [j for j in alive if j != unit]
    basis = rows[others]
    gram = basis @ basis.T + lam * torch.eye(len(others), dtype=torch.float64)
    found = torch.linalg.solve(gram, basis @ rows[unit])
    full = torch.zeros(len(rows), dtype=torch.float64)
    full[others] = found
    return float((basis.T @ found - rows[unit]).norm()), full
