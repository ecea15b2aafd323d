"""Projective Pruning on small nets: every array of the reference, out of the pass itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.passes import Projective, ProjectivePruning
from fxcompress.passes.elimination import Elimination, Vectors, eliminate
from fxcompress.passes.projective.pairs import pairs_of
from fxcompress.program import Program
from references import Arrays, close, read

CASES = ("dense8x12_lam0", "dense8x12_lam0.001", "wide16x8_lam0.001", "conv6x3x3x3_lam0",
         "conv6x3x3x3_lam0.001", "dup8x10_lam0.001")  # fmt: skip
MODES = ("exact", "static", "scaled", "authors")


def near(case: str) -> Any:
    """The rank-deficient case loses digits to λ, the near duplicates to their closeness."""
    if "wide" in case:
        return partial(close, rtol=1e-6, atol=1e-7)
    return partial(close, atol=1e-8) if "dup" in case else close


# ---- rows


def compiled(arrays: Arrays) -> Program:
    """Two layers of the case, with nothing between: convolutions where it is of convolutions."""
    n, m = arrays["W"].shape
    first: nn.Module = nn.Linear(m, n)
    second: nn.Module = nn.Linear(n, len(arrays["V"]))
    x, values = torch.randn(2, m), {"0.weight": arrays["W"], "1.weight": arrays["V"]}
    if "W_conv" in arrays:
        first, second, x = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), torch.randn(2, 3, 7, 7)
        values = {"0.weight": arrays["W_conv"], "1.weight": arrays["V_conv"]}
    net = nn.Sequential(first, second).double()
    net.load_state_dict(values | {"0.bias": arrays["b"], "1.bias": arrays["a"]})
    return fx.compile(net, (x.double(),))


def pruned(found: Program, arrays: Arrays, **options: Any) -> Program:
    """Without as many units as the case takes steps."""
    share = (int(arrays["steps"]) + 0.5) / len(arrays["W"])
    options |= {name: float(arrays[name]) for name in ("lam", "alpha", "beta", "gamma")}
    return fx.apply(found, ProjectivePruning(ratio=share, round_to=1, **options))


def tensors_of(small: Program) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, biases and columns as the reference lays them out: a line for each output and tap."""
    values = small.module.state_dict()
    columns = values["1.weight"].movedim(1, -1).flatten(0, -2)
    return values["0.weight"].flatten(1), values["0.bias"], columns


def kept(small: Program, name: str) -> list[int]:
    index = small.kept[name][0]
    assert index is not None
    return index.tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_what_is_left_is_what_the_reference_leaves(shared: Path, case: str, mode: str) -> None:
    arrays = read(shared, f"projective_{case}")
    small = pruned(compiled(arrays), arrays, rescoring=mode)
    assert kept(small, "0.weight") == arrays[f"{mode}_keep"].tolist()
    for value, key in zip(tensors_of(small), ("Wp", "bp", "Vp"), strict=True):
        near(case)(value, arrays[f"{mode}_{key}"])
    assert torch.equal(small.module.state_dict()["1.bias"], arrays["a"])


@pytest.mark.parametrize("case", CASES)
def test_compensated_columns_and_bias_are_the_reference_ones(shared: Path, case: str) -> None:
    arrays = read(shared, f"projective_{case}")
    found = compiled(arrays)
    small = pruned(found, arrays, reconstruction="linear", rescoring="exact")
    assert kept(small, "0.weight") == arrays["lincomp_keep"].tolist()
    for value, key in zip(tensors_of(small), ("Wp", "bp", "Vp"), strict=True):
        near(case)(value, arrays[f"lincomp_{key}"])
    shift = small.module.state_dict()["1.bias"] - arrays["a"]
    # Without padding a constant goes through all taps of an output.
    near(case)(shift, arrays["lincomp_ap"].reshape(len(shift), -1).sum(1))


@pytest.mark.parametrize("case", CASES)
def test_compensation_takes_the_rows_in_the_reference_order(shared: Path, case: str) -> None:
    arrays = read(shared, f"projective_{case}")
    found = compiled(arrays)
    method = Projective(lam=float(arrays["lam"]), reconstruction="linear", rescoring="exact")
    score = method.score(found, found.groups[0])
    order = score[0].argsort()[: int(arrays["steps"])]
    assert order.tolist() == arrays["lincomp_order"].tolist()


def as_next(arrays: Arrays, mode: Any, step: int, unit: int) -> Elimination:
    """The elimination that goes the reference's way for some steps, and then takes `unit`."""
    among = torch.zeros(len(arrays["W"]), dtype=torch.bool)
    among[arrays[f"{mode}_order"][:step]] = True
    among[unit] = True
    return eliminate(
        Vectors.of_rows(arrays["W"]),
        step + 1,
        float(arrays["lam"]),
        rescoring=mode,
        alpha=float(arrays["alpha"]),
        among=among,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_every_row_has_the_reference_score_at_every_step(
    shared: Path, case: str, mode: str
) -> None:
    arrays = read(shared, f"projective_{case}")
    for step, scores in enumerate(arrays[f"{mode}_d"]):
        left = (~scores.isnan()).nonzero().flatten().tolist()
        found = [as_next(arrays, mode, step, unit).distances[step] for unit in left]
        near(case)(torch.stack(found), scores[left])


# ---- query and key


class Head(nn.Module):
    """One head of attention with the query and key of the reference."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        dims, width = arrays["Wq"].shape
        self.q, self.k = nn.Linear(width, dims), nn.Linear(width, dims)
        self.v, self.o = nn.Linear(width, 4), nn.Linear(4, 3)
        self.double()
        own = {f"{n}.weight": arrays[f"W{n}"] for n in "qk"}
        self.load_state_dict(own | {f"{n}.bias": arrays[f"b{n}"] for n in "qk"}, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v)[:, 0])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def bilinear(shared: Path) -> Arrays:
    return read(shared, "bilinear_qk")


@pytest.fixture(scope="module")
def head(bilinear: Arrays) -> Program:
    width = bilinear["Wq"].shape[1]
    return fx.compile(Head(bilinear).eval(), (torch.randn(2, 7, width).double(),))


def one_less(head: Program, arrays: Arrays, **options: Any) -> Program:
    one = ProjectivePruning(
        ratio=1.5 / 6, lam=float(arrays["lam"]), dims="qk", round_to=1, **options
    )
    return fx.apply(head, one)


def joint(found: Program) -> Tensor:
    """What a head computes of two tokens with a one at their end: QᵀK, with biases as a column."""
    values = found.module.state_dict()
    q, k = (torch.cat([values[f"{n}.weight"], values[f"{n}.bias"][:, None]], 1) for n in "qk")
    return q.mT @ k


def test_dims_of_a_head_have_the_reference_scores(head: Program, bilinear: Arrays) -> None:
    group = next(group for group in head.groups if group.kind == "qk")
    pairs = pairs_of(head, group)
    assert pairs is not None
    close(pairs.grams()[0], bilinear["G"])
    lam = float(bilinear["lam"])
    for unit, distance in enumerate(bilinear["d"]):
        vectors = Vectors.of_gram(pairs.grams()[0])
        found = eliminate(vectors, 1, lam, among=torch.arange(6) == unit)
        close(found.distances[0], distance)
        if unit == int(bilinear["pruned"]):
            close(found.coefficients[0], bilinear["qhat"])
    assert int(Projective(lam=lam).score(head, group)[0].argmin()) == int(bilinear["pruned"])


def test_a_head_without_one_dim_has_the_reference_weights(head: Program, bilinear: Arrays) -> None:
    small = one_less(head, bilinear)
    for name in "qk":
        close(small.module.state_dict()[f"{name}.weight"], bilinear[f"W{name}_new"])
        close(small.module.state_dict()[f"{name}.bias"], bilinear[f"b{name}_new"])


def test_what_a_head_loses_is_what_the_reference_loses(head: Program, bilinear: Arrays) -> None:
    """As much as the score with giving back, far more without, and never less than any other
    matrix of that rank.
    """
    whole = joint(head)
    close(whole, bilinear["M"])
    given, dropped = one_less(head, bilinear), one_less(head, bilinear, reconstruction="none")
    close((joint(given) - whole).norm(), bilinear["err_comp"])
    close((joint(dropped) - whole).norm(), bilinear["err_drop"])
    least = torch.linalg.svdvals(whole)[5:].norm()  # Eckart and Young
    close(least, bilinear["err_svd"])
    assert least < bilinear["err_comp"] < bilinear["err_drop"]
