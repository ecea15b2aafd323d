"""Laws of the greedy elimination: what goes, in which order, and what the others take over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eliminated import LAMS, MODES, by_definition, matrices
from fxcompress.errors import PlanError
from fxcompress.passes.elimination import Elimination, Rescoring, Vectors, eliminate, scores


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
