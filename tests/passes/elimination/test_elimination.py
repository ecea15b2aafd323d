"""Laws of the greedy elimination, and the reference values of Projective Pruning."""

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

from fxcompress.errors import PlanError
from fxcompress.passes.elimination import Elimination, Form, Rescoring, Vectors, eliminate, scores

CASES = ("dense8x12_lam0", "dense8x12_lam0.001", "wide16x8_lam0.001", "conv6x3x3x3_lam0",
         "conv6x3x3x3_lam0.001", "dup8x10_lam0.001")  # fmt: skip
MODES: tuple[Rescoring, ...] = ("exact", "static", "scaled", "authors")
LAMS = st.sampled_from((1e-5, 1e-3, 0.1, 2.0))
Arrays = dict[str, NDArray[Any]]


def golden(shared: Path, name: str) -> Arrays:
    return dict(np.load(shared / "golden" / f"{name}.npz"))


def close(found: Tensor, expected: NDArray[Any], rtol: float = 1e-9, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=atol)


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


def greedy_by_definition(
    rows: Tensor, lam: float, steps: int, alpha: float
) -> tuple[list[int], list[float], Tensor]:
    rows = rows.clone()
    alive, order, seen = list(range(len(rows))), [], []
    product = torch.ones(len(rows), dtype=torch.float64)
    for _ in range(steps):
        found = {unit: by_definition(rows, lam, alive, unit) for unit in alive}
        unit = min(alive, key=lambda u: found[u][0])
        seen.append(found[unit][0])
        order.append(unit)
        alive.remove(unit)
        scale = 1 + alpha * found[unit][1]
        rows, product = rows * scale[:, None], product * scale
    return order, seen, product


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


# ---- eliminations


@given(rows=matrices(4), lam=st.sampled_from((1e-3, 0.1)), data=st.data())
def test_downdates_are_refits(rows: Tensor, lam: float, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, len(rows) - 1))
    order, distances, _ = greedy_by_definition(rows, lam, steps, 0.0)
    found = eliminate(Vectors.of_rows(rows), steps, lam)
    assert found.order.tolist() == order
    torch.testing.assert_close(
        found.distances, torch.tensor(distances, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


@given(rows=matrices(4), alpha=st.sampled_from((0.25, 0.5)), data=st.data())
def test_exact_is_the_definition_on_scaled_rows(
    rows: Tensor, alpha: float, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, len(rows) - 1))
    order, distances, product = greedy_by_definition(rows, 0.01, steps, alpha)
    found = eliminate(Vectors.of_rows(rows), steps, 0.01, rescoring="exact", alpha=alpha)
    assert found.order.tolist() == order
    torch.testing.assert_close(found.factors(alpha)[0], product, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        found.distances, torch.tensor(distances, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


@given(n=st.integers(3, 9), alpha=st.sampled_from((0.25, 0.5)))
def test_without_a_ridge_scaled_is_exact(n: int, alpha: float) -> None:
    rows = torch.randn(n, 2 * n, dtype=torch.float64)
    order, _, product = greedy_by_definition(rows, 0.0, n - 1, alpha)
    for mode in ("exact", "scaled"):
        found = eliminate(Vectors.of_rows(rows), n - 1, 0.0, rescoring=mode, alpha=alpha)
        assert found.order.tolist() == order
        torch.testing.assert_close(found.factors(alpha)[0], product)


@given(rows=matrices(4), lam=st.sampled_from((1e-3, 0.1)))
def test_without_redistribution_the_modes_agree(rows: Tensor, lam: float) -> None:
    steps = len(rows) - 1
    found = [eliminate(Vectors.of_rows(rows), steps, lam, rescoring=mode) for mode in MODES[:3]]
    assert len({tuple(each.order.tolist()) for each in found}) == 1


@pytest.mark.parametrize("lam", [0.0, 1e-3])
@pytest.mark.parametrize("follow", [0.0, 0.5])
def test_blocks_do_not_matter(lam: float, follow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, and rows dropped on the way, against one."""
    rows = torch.randn(150, 170, dtype=torch.float64)
    vectors = Vectors.of_rows(rows)
    monkeypatch.setattr("fxcompress.passes.elimination.lazy.BLOCK", 7)
    found = eliminate(vectors, 120, lam, rescoring="scaled", alpha=follow)
    monkeypatch.setattr("fxcompress.passes.elimination.lazy.BLOCK", 1000)
    once = eliminate(vectors, 120, lam, rescoring="scaled", alpha=follow)
    assert found.order.tolist() == once.order.tolist()
    torch.testing.assert_close(found.coefficients, once.coefficients, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.distances, once.distances, rtol=1e-8, atol=1e-10)


@given(rows=matrices(4))
def test_a_gram_matrix_is_as_good_as_rows(rows: Tensor) -> None:
    steps = len(rows) - 1
    for mode in MODES:
        known = eliminate(Vectors.of_rows(rows), steps, 0.05, rescoring=mode, alpha=0.3)
        found = eliminate(Vectors.of_gram(rows @ rows.T), steps, 0.05, rescoring=mode, alpha=0.3)
        assert found.order.tolist() == known.order.tolist()
        torch.testing.assert_close(found.coefficients, known.coefficients, rtol=1e-5, atol=1e-7)


@given(rows=matrices(4), data=st.data())
def test_weights_and_masks(rows: Tensor, data: st.DataObject) -> None:
    """The first to go minimises distance times weight, among those that may."""
    weights = torch.rand(len(rows), dtype=torch.float64) + 0.1
    among = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    among[data.draw(st.integers(0, len(rows) - 1))] = True
    steps = min(int(among.sum()), len(rows) - 1)
    vectors = Vectors.of_rows(rows)
    found = eliminate(vectors, steps, 1e-3, weights=weights, among=among)
    assert bool(among[found.order].all())
    first = scores(rows, 1e-3).distances * weights
    assert int(found.order[0]) == int(first.masked_fill(~among, torch.inf).argmin())
    torch.testing.assert_close(found.criteria, found.distances * weights[found.order])


def test_twins_do_not_both_go() -> None:
    """Only at once do both of a pair go before rows that are further away."""
    rows = torch.randn(6, 20, dtype=torch.float64)
    rows[1] *= 3
    rows[4] = rows[1]
    for mode in MODES[:3]:
        found = eliminate(Vectors.of_rows(rows), 2, 1e-4, rescoring=mode, alpha=0.5)
        assert found.order.tolist()[0] == 1, "of equal ones the first"
        assert 4 not in found.order.tolist()
    once = eliminate(Vectors.of_rows(rows), 2, 1e-4, rescoring="oneshot")
    assert sorted(once.order.tolist()) == [1, 4]


def test_a_row_of_zeros_goes_first_and_gives_nothing_back() -> None:
    rows = torch.randn(5, 9, dtype=torch.float64)
    rows[3] = 0
    for mode in MODES:
        found = eliminate(Vectors.of_rows(rows), 1, 1e-3, rescoring=mode, alpha=0.5)
        assert found.order.tolist() == [3]
        # d² is a difference of two numbers of the size of λ
        assert float(found.distances[0]) == pytest.approx(0, abs=1e-7)
        torch.testing.assert_close(found.factors(0.5)[0], torch.ones(5, dtype=torch.float64))


@given(rows=matrices(), lam=LAMS)
def test_importance_sorts_in_the_order_of_removal(rows: Tensor, lam: float) -> None:
    found = eliminate(Vectors.of_rows(rows), len(rows) - 1, lam)
    order = found.importance.argsort().tolist()
    assert order[:-1] == found.order.tolist()
    assert len(set(found.importance.tolist())) == len(rows)


def test_safe_factors_stay_in_bounds() -> None:
    """A twin of the opposite sign would be wiped out."""
    rows = torch.randn(4, 9, dtype=torch.float64)
    rows[2] = -3 * rows[0]
    vectors, second = Vectors.of_rows(rows), torch.arange(4) == 2
    for mode in MODES:
        found = eliminate(vectors, 1, 1e-6, rescoring=mode, alpha=0.5, safe=True, among=second)
        product, clipped = found.factors(0.5, safe=True)
        assert clipped == 1
        assert float(product.min()) == 0.05
        assert found.clipped == (0 if mode == "static" else 1)


@pytest.mark.parametrize("mode", [*MODES, "oneshot"])
def test_dependent_rows_need_a_ridge(mode: Rescoring) -> None:
    rows = torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(PlanError, match=r"5 units span only 3 dimensions.*positive lam"):
        eliminate(Vectors.of_rows(rows), 2, 0.0, rescoring=mode, alpha=0.5)


@pytest.mark.parametrize("steps", [-1, 4, 9])
def test_one_unit_must_stay(steps: int) -> None:
    with pytest.raises(PlanError, match=r"at least one must stay|of at least 0"):
        eliminate(Vectors.of_rows(torch.randn(4, 9)), steps, 1e-3)


def test_a_single_unit() -> None:
    found: Elimination = eliminate(Vectors.of_rows(torch.randn(1, 9)), 0, 1e-3)
    assert found.kept().tolist() == [0]
    assert found.importance.shape == (1,)


def test_half_precision_is_scored_in_double() -> None:
    rows = torch.randn(6, 4)
    assert scores(rows.half(), 1e-3).distances.dtype == torch.float64
