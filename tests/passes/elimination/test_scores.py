"""Distances of rows to the span of the others, and the reference values of Projective Pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from eliminated import LAMS, MODES, by_definition, matrices
from fxcompress.passes.elimination import Form, Rescoring, Vectors, eliminate, scores

CASES = ("dense8x12_lam0", "dense8x12_lam0.001", "wide16x8_lam0.001", "conv6x3x3x3_lam0",
         "conv6x3x3x3_lam0.001", "dup8x10_lam0.001")  # fmt: skip
Arrays = dict[str, NDArray[Any]]


def golden(shared: Path, name: str) -> Arrays:
    return dict(np.load(shared / "golden" / f"{name}.npz"))


def close(found: Tensor, expected: NDArray[Any], rtol: float = 1e-9, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=atol)


# ---- reference values


@pytest.mark.parametrize("name", CASES)
def test_golden_scores(shared: Path, name: str) -> None:
    """The rank-deficient case loses digits to λ, the duplicates to their closeness."""
    arrays = golden(shared, f"projective_{name}")
    rtol, atol = (1e-6, 1e-7) if "wide" in name else (1e-9, 1e-8 if "dup" in name else 1e-10)
    found = scores(torch.tensor(arrays["W"]), float(arrays["lam"]))
    close(found.distances, arrays["d_all"], rtol, atol)
    close(found.coefficients, arrays["Q_all"], rtol, atol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_golden_eliminations(shared: Path, name: str, mode: Rescoring) -> None:
    arrays = golden(shared, f"projective_{name}")
    rtol, atol = (1e-6, 1e-7) if "wide" in name else (1e-9, 1e-8 if "dup" in name else 1e-10)
    steps, alpha = int(arrays["steps"]), float(arrays["alpha"])
    vectors = Vectors.of_rows(torch.tensor(arrays["W"]))
    found = eliminate(vectors, steps, float(arrays["lam"]), rescoring=mode, alpha=alpha)
    assert found.order.tolist() == arrays[f"{mode}_order"].tolist()
    assert found.kept().tolist() == arrays[f"{mode}_keep"].tolist()
    close(found.coefficients, arrays[f"{mode}_qhat"], rtol, atol)
    distances = arrays[f"{mode}_d"][range(steps), arrays[f"{mode}_order"]]
    close(found.distances, distances, rtol, atol)
    for share in ("alpha", "beta", "gamma"):
        product, _ = found.factors(float(arrays[share]))
        close(product, arrays[f"{mode}_u_{share}"], rtol, atol)


def test_golden_arc_cosine_gram(shared: Path) -> None:
    arrays = golden(shared, "arccos_gram")
    vectors, lam = Vectors.of_gram(torch.tensor(arrays["K"])), float(arrays["lam"])
    n = len(arrays["K"])
    for unit in range(n):
        first = eliminate(vectors, 1, lam, among=torch.arange(n) == unit)
        close(first.distances, arrays["d"][[unit]])
        close(first.coefficients[0], arrays["Q"][unit])


# ---- scores


@given(rows=matrices(), lam=LAMS)
def test_scores_are_those_of_the_definition(rows: Tensor, lam: float) -> None:
    """At λ = 1e-5 of rank-deficient rows ten digits are left of sixteen."""
    found = scores(rows, lam)
    for unit in range(len(rows)):
        distance, coefficients = by_definition(rows, lam, list(range(len(rows))), unit)
        assert float(found.distances[unit]) == pytest.approx(distance, rel=1e-5, abs=1e-9)
        torch.testing.assert_close(found.coefficients[unit], coefficients, rtol=1e-6, atol=1e-7)


@given(rows=matrices(), lam=LAMS, form=st.sampled_from(("gram", "dual", "svd")))
def test_the_forms_agree(rows: Tensor, lam: float, form: Form) -> None:
    """Where there are more rows than columns, distances are themselves of the order of λ; the dual
    is for that case alone.
    """
    assume(form != "dual" or len(rows) > rows.shape[1])
    expected, found = scores(rows, lam, "svd"), scores(rows, lam, form)
    atol = 1e-6 * max(lam, 1e-3)
    torch.testing.assert_close(found.distances, expected.distances, rtol=1e-5, atol=atol)


@given(rows=matrices(), lam=LAMS)
def test_no_row_is_further_than_its_length(rows: Tensor, lam: float) -> None:
    assert bool((scores(rows, lam).distances <= rows.norm(dim=1) * (1 + 1e-9)).all())


@given(rows=matrices(), lam=st.tuples(LAMS, LAMS).map(sorted))
def test_distances_grow_with_the_ridge(rows: Tensor, lam: list[float]) -> None:
    """By rounding they may shrink where they are a billionth of the row."""
    small, large = (scores(rows, each).distances for each in lam)
    assert bool((small <= large + 1e-9 * rows.norm(dim=1)).all())


@given(rows=matrices(), lam=LAMS)
def test_rotations_and_permutations_do_not_matter(rows: Tensor, lam: float) -> None:
    rotation, _ = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], dtype=torch.float64))
    order = torch.randperm(len(rows))
    expected, found = scores(rows, lam).distances, scores((rows @ rotation)[order], lam).distances
    torch.testing.assert_close(found, expected[order], rtol=1e-5, atol=1e-9)


@given(rows=matrices(), lam=LAMS, scale=st.floats(0.1, 10))
def test_scale_and_ridge_go_together(rows: Tensor, lam: float, scale: float) -> None:
    """d(cW; c²λ) = c d(W; λ)."""
    found = scores(scale * rows, scale**2 * lam).distances
    torch.testing.assert_close(found, scale * scores(rows, lam).distances, rtol=1e-5, atol=1e-9)


@given(rows=matrices())
def test_the_twin_of_a_row_is_at_no_distance(rows: Tensor) -> None:
    twice = torch.cat([rows, rows[:1]])
    found = scores(twice, 1e-6).distances
    assert float(found[0]) < 1e-5
    assert float(found[-1]) < 1e-5
