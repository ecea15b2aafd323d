"""PROscores: reference values, the geometry they come from, and what leaves them as they are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.errors import PlanError
from fxcompress.passes.ippro.scores import Filters, auto_step

SEEDS = st.integers(0, 2**31 - 1)
STEPS = st.floats(1e-4, 1e-2)


def read(shared: Path, name: str) -> dict[str, Tensor]:
    with np.load(shared / "golden" / f"{name}.npz") as arrays:
        return {each: torch.from_numpy(np.asarray(arrays[each])) for each in arrays.files}


def drawn(seed: int, bare: bool = False, units: int = 6, width: int = 5) -> Filters:
    numbers = np.random.default_rng(seed).standard_normal((units, 2 * width + 1))
    table = torch.from_numpy(numbers)
    return Filters(table[:, :width], table[:, width:-1], table[:, -1], bare)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("target", ["bn", "conv"])
def test_scores_are_the_reference_ones(shared: Path, target: str) -> None:
    golden = read(shared, "ippro_conv_bn_relu")
    layer = Filters(golden[f"{target}_F"], golden[f"{target}_gradF"], golden["dD"])
    close(layer.slope(), golden[f"{target}_slope"])
    for lam, wanted in zip(golden["lambdas"], golden[f"{target}_proscore"], strict=True):
        close(layer.proscore(float(lam)), wanted)


def test_the_scale_free_score_is_the_reference_one(shared: Path) -> None:
    golden = read(shared, "ippro_conv_bn_relu")
    layer = Filters(golden["bn_F"], golden["bn_gradF"], golden["dD"])
    close(layer.proscore(0.01, scale_free=True), golden["scalefree_lam0.01"])


def test_the_order_may_turn_with_the_step(shared: Path) -> None:
    golden = read(shared, "ippro_lambda_counterexample")
    layer = Filters(golden["F"], golden["gradF"], golden["dD"])
    for lam, scores, order in zip(
        golden["lambdas"], golden["proscore"], golden["order"], strict=True
    ):
        found = layer.proscore(float(lam))
        close(found, scores)
        assert found.argsort().tolist() == order.tolist()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_scores_without_activation_are_the_reference_ones(shared: Path, name: str) -> None:
    golden = read(shared, "ippro_attention")
    rows = torch.cat([golden[f"W{name}"], golden[f"b{name}"][:, None]], 1)
    layer = Filters(rows, golden[f"{name}_gradF"], torch.zeros(6), bare=True)
    close(layer.gain, golden[f"{name}_m"])
    close(layer.gain * layer.taylor, golden[f"{name}_dD"])
    scores = layer.proscore(0.01)
    close(scores, golden[f"{name}_proscore_lam0.01"])
    close(scores.reshape(2, 3).mean(0), golden[f"{name}_proscore_head_avg"])


@given(SEEDS, STEPS)
def test_a_score_is_the_tangent_of_an_angle(seed: int, lam: float) -> None:
    layer = drawn(seed)
    first = layer.norm - lam * layer.signal
    point = torch.cat([first[:, None], layer.value - lam * layer.grad], 1)
    angle = torch.arccos(first.abs() / point.norm(dim=1))
    torch.testing.assert_close(layer.proscore(lam), angle.tan(), rtol=1e-9, atol=0)


@given(SEEDS, st.booleans())
def test_the_embedding_is_on_the_cone(seed: int, bare: bool) -> None:
    layer = drawn(seed, bare)
    close(layer.proscore(0.0), torch.ones(6).double())
    m, norm = layer.gain, layer.norm
    close((1 + (1 / m - 1)) * m, torch.ones(6).double())  # tensors stay as they are
    close(1 / m - 1, m * norm)


@given(SEEDS, st.booleans(), st.booleans())
def test_the_slope_is_the_limit_of_small_steps(seed: int, bare: bool, free: bool) -> None:
    layer = drawn(seed, bare)
    lam = 1e-6
    limit = (layer.proscore(lam, free) - layer.proscore(-lam, free)) / (2 * lam)
    size = layer.slope(free).abs().max()
    # Rounding of scores near 1, 1e-16/λ, and terms of order λ².
    torch.testing.assert_close(layer.slope(free), limit, rtol=1e-6, atol=1e-8 * (1 + float(size)))


@given(SEEDS, STEPS, st.floats(0.1, 10), st.booleans())
def test_the_scale_free_score_stays_under_rescaling(
    seed: int, lam: float, scale: float, bare: bool
) -> None:
    layer = drawn(seed, bare)
    other = Filters(scale * layer.value, layer.grad / scale, layer.signal, bare)
    close(other.proscore(lam, True), layer.proscore(lam, True))
    close(other.slope(True), layer.slope(True))


@given(SEEDS, STEPS, st.booleans(), st.permutations(range(6)))
def test_scores_move_with_their_filters(
    seed: int, lam: float, bare: bool, order: list[int]
) -> None:
    layer = drawn(seed, bare)
    other = Filters(layer.value[order], layer.grad[order], layer.signal[order], bare)
    assert torch.equal(other.proscore(lam), layer.proscore(lam)[order])


@given(SEEDS, st.booleans(), st.booleans())
def test_a_filter_of_zeros_goes_first(seed: int, bare: bool, free: bool) -> None:
    layer = drawn(seed, bare)
    layer.value[2] = 0
    scores = layer.proscore(1e-4, free)
    assert float(scores[2]) == 0
    assert int(scores.argmin()) == 2
    assert bool(torch.isfinite(layer.slope(free)).all())


def test_a_step_to_infinity_is_refused() -> None:
    one = torch.ones(1, 1).double()
    with pytest.raises(PlanError, match="smaller lam"):
        Filters(one, one, torch.ones(1).double()).proscore(1.0)


def test_the_automatic_step_moves_the_middle_score_by_a_hundredth() -> None:
    layer = drawn(0, units=7)
    moved = auto_step([layer]) * layer.slope().abs()
    assert float(moved.median()) == pytest.approx(0.01)
    dead = Filters(layer.value, torch.zeros(7, 5), torch.zeros(7))
    assert auto_step([layer, dead]) == auto_step([layer])
    with pytest.raises(PlanError, match="no gradient"):
        auto_step([dead])
    assert math.isfinite(auto_step([layer], scale_free=True))
