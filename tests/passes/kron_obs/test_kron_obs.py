"""Kronecker factors: reference values, optimality of the update, and the pass."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress import passes
from fxcompress.errors import PlanError
from fxcompress.passes import KroneckerSurgeon, KronOBSPruning
from fxcompress.passes.kron_obs.factors import (
    Factors,
    eigenbasis_damages,
    entry_losses,
    factors_of,
    row_losses,
    rows_removed,
    with_drawn_labels,
)
from fxcompress.stats.gradients import gradients
from models import build, normal
from programs import program

EXACT = 1e-9  # systems of a few unknowns with condition numbers below a thousand
_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "fisher_eigendamage.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _factors(seed: int, outputs: int, inputs: int) -> tuple[Tensor, Factors]:
    def gram(size: int, seed: int) -> Tensor:
        root = normal(size, size + 3, seed=seed).double()
        return root @ root.mT / size + 0.1 * torch.eye(size)

    weight = normal(outputs, inputs, seed=seed).double()
    return weight, Factors(gram(inputs, seed + 1), gram(outputs, seed + 2))


def _loss(change: Tensor, factors: Factors) -> Tensor:
    return 0.5 * torch.trace(factors.outputs @ change @ factors.inputs @ change.mT)


# ---- numbers


def test_damages_are_the_reference_ones(golden: dict[str, Tensor]) -> None:
    factors = Factors(golden["A"], golden["G"])
    rotated, damages = eigenbasis_damages(golden["W"], factors)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(rotated.abs(), golden["abs_W_rot"], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(damages.sum(1), golden["eigendamage_row"], **close)  # type: ignore[arg-type]
    torch.testing.assert_close(damages.sum(0), golden["eigendamage_col"], **close)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def drawn(golden: dict[str, Tensor]) -> tuple[fx.Program, str]:
    """The softmax regression of the reference with a thousand draws of its labels, and its call."""
    layer = nn.Linear(4, 3, bias=False)
    net = nn.Sequential(layer).double()
    with torch.no_grad():
        layer.weight.copy_(golden["W"])
    batch = (golden["X"], golden["y"])
    found = fx.compile(net, (golden["X"],), task=fx.Task([batch] * 1000, F.cross_entropy))
    name = next(node.name for node in found.module.graph.nodes if "linear" in node.name)
    return with_drawn_labels(found, "a test"), name


CHANCE = 4 * 0.5 / 12000**0.5  # four standard errors of a mean of what lies between 0 and 1


def test_factors_of_a_softmax_regression_are_the_reference_ones(
    golden: dict[str, Tensor], drawn: tuple[fx.Program, str]
) -> None:
    found, _ = drawn
    factors = factors_of(found, found.maps, "a test")["0.weight"]
    torch.testing.assert_close(factors.inputs, golden["A"], rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(factors.outputs, golden["G"], rtol=0, atol=CHANCE)


def test_with_drawn_labels_squared_gradients_are_the_true_fisher_information(
    golden: dict[str, Tensor], drawn: tuple[fx.Program, str]
) -> None:
    found, name = drawn
    total = torch.zeros(3, 4, dtype=torch.float64)

    def add(_: Tensor, gradient: Tensor) -> None:
        total.add_(gradient.square().mT @ golden["X"].square())

    gradients(found, (), {name: add})
    fisher = total / 12000
    torch.testing.assert_close(fisher, golden["true_fisher_diag"], rtol=0, atol=4 * CHANCE)
    rows = 0.5 * (golden["W"].square() * fisher).sum(1)
    torch.testing.assert_close(rows, golden["obd_row"], rtol=0, atol=CHANCE)
    assert not torch.allclose(fisher, golden["empirical_fisher_diag"], rtol=0, atol=4 * CHANCE)


def _by_chance(output: Tensor, labels: Tensor) -> Tensor:
    """A loss whose gradient is √(3 p) times that of the cross entropy, p the chance of the label.

    Over samples with each of 3 labels in turn, squared gradients are then exactly those that drawn
    labels have in the mean.
    """
    chances = output.detach().softmax(1).gather(1, labels[:, None])[:, 0]
    return ((3 * chances).sqrt() * F.cross_entropy(output, labels, reduction="none")).mean()


@pytest.fixture(scope="module")
def expected(golden: dict[str, Tensor]) -> fx.Program:
    """The softmax regression with a layer after it that hands on its rows."""
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    net.load_state_dict({"0.weight": golden["W"], "1.weight": torch.eye(3).double()})
    x, count = golden["X"], len(golden["X"])
    batches = [(x, torch.full((count,), label)) for label in range(3)]
    return fx.compile(net, (x,), task=fx.Task(batches, _by_chance))


def test_expected_factors_are_the_reference_ones(
    golden: dict[str, Tensor], expected: fx.Program
) -> None:
    """And so are their eigenvalues, the weight in their axes, and what its entries cost."""
    factors = factors_of(expected, expected.maps, "a test")["0.weight"]
    _close(factors.inputs, golden["A"])
    _close(factors.outputs, golden["G"])
    _close(torch.linalg.eigvalsh(factors.inputs), golden["lambda_A"])
    _close(torch.linalg.eigvalsh(factors.outputs), golden["lambda_G"])
    rotated, damages = eigenbasis_damages(golden["W"], factors)
    _close(rotated.abs(), golden["abs_W_rot"])
    _close(golden["W_rot"].abs(), golden["abs_W_rot"])  # the signs of axes are free
    _close(damages.sum(1), golden["eigendamage_row"])
    _close(damages.sum(0), golden["eigendamage_col"])


def test_diagonal_fisher_information_is_the_reference_one(
    golden: dict[str, Tensor], expected: fx.Program
) -> None:
    """Of the model itself and of the data, entry by entry; half of a row's sum is its loss."""
    true = gradients(expected, ["0.weight"], squares=True).square["0.weight"]
    _close(true, golden["true_fisher_diag"])
    score = passes.Taylor(form="fisher", roles=("produce",)).score(expected, expected.group("0"))
    _close(score[0] / 2, golden["obd_row"])
    task = fx.Task([(golden["X"], golden["y"])], F.cross_entropy)
    labelled = gradients(replace(expected, task=task), ["0.weight"], squares=True)
    _close(labelled.square["0.weight"], golden["empirical_fisher_diag"])


@given(st.integers(0, 2**20), st.integers(2, 5), st.integers(1, 4))
def test_without_one_row_the_loss_rises_by_its_score(seed: int, outputs: int, inputs: int) -> None:
    weight, factors = _factors(seed, outputs, inputs)
    for row, score in enumerate(row_losses(weight, factors)):
        gone = torch.arange(outputs) == row
        change = rows_removed(weight, factors, gone) - weight
        torch.testing.assert_close(_loss(change, factors), score, rtol=EXACT, atol=EXACT)


@given(st.integers(0, 2**20))
def test_no_other_weight_without_those_rows_is_better(seed: int) -> None:
    weight, factors = _factors(seed, 5, 3)
    gone = torch.tensor([True, False, True, False, False])
    best = rows_removed(weight, factors, gone)
    assert not best[gone].any()
    least = _loss(best - weight, factors)
    masked = torch.where(gone[:, None], torch.zeros_like(weight), weight)
    assert float(least) <= float(_loss(masked - weight, factors)) + EXACT
    other = normal(5, 3, seed=seed + 5).double() * ~gone[:, None]
    for step in (1e-3, 1.0):
        assert float(_loss(best + step * other - weight, factors)) >= float(least) - EXACT


@given(st.integers(0, 2**20))
def test_without_one_entry_the_loss_rises_by_its_score(seed: int) -> None:
    weight, factors = _factors(seed, 3, 4)
    hessian = torch.kron(factors.outputs, factors.inputs)
    inverse = torch.linalg.inv(hessian)
    expected = 0.5 * weight.flatten().square() / inverse.diagonal()
    torch.testing.assert_close(
        entry_losses(weight, factors).flatten(), expected, rtol=EXACT, atol=EXACT
    )


def test_factors_of_a_convolution_are_those_of_its_patches() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Flatten()).double()
    x, labels = normal(4, 2, 5, 5).double(), torch.arange(4)
    found = fx.compile(net, (x,), task=fx.Task([(x[:1], labels[:1]), (x[1:], labels[1:])],
                                               F.cross_entropy))  # fmt: skip
    factors = factors_of(found, found.maps, "a test")["0.weight"]
    patches = F.unfold(x, 3, padding=1, stride=2).mT.flatten(0, 1)
    rows = torch.cat([patches, torch.ones(len(patches), 1).double()], 1)
    torch.testing.assert_close(factors.inputs, rows.mT @ rows / 4, rtol=EXACT, atol=EXACT)
    output = net[0](x)
    (grads,) = torch.autograd.grad(
        F.cross_entropy(output.flatten(1), labels, reduction="sum"), output
    )
    lines = grads.movedim(1, 3).flatten(0, 2)
    torch.testing.assert_close(factors.outputs, lines.mT @ lines / 4 / 9, rtol=EXACT, atol=EXACT)


# ---- the pass


@pytest.mark.parametrize("name", ["mlp", "conv_chain", "projected_residual", "swiglu", "points"])
@pytest.mark.parametrize("update", [False, True])
def test_what_is_left_is_what_masking_leaves(name: str, update: bool) -> None:
    model, args, _ = build(name)
    labels = torch.zeros(len(args[0]), dtype=torch.int64)
    task = fx.Task([(args[0], labels)], lambda y, t: F.cross_entropy(y.flatten(1), t))
    found = fx.compile(model, args, task=task)
    one = KronOBSPruning(ratio=0.4, update=update, labels="data", round_to=1)
    small = fx.apply(found, one)
    assert small.report.checks[-1].kind == "zero-masked"
    assert small.report.params.ratio < 1


def test_a_duplicate_costs_nothing_and_is_made_up_for() -> None:
    """Two rows with the same consumer get the same gradients: one can do the work of both."""
    first, last = nn.Linear(3, 4), nn.Linear(4, 6)
    net = nn.Sequential(first, last).double()
    with torch.no_grad():
        last.weight[:, 2] = last.weight[:, 0]
    x = normal(64, 3).double()
    found = fx.compile(net, (x,), task=fx.Task([(x, torch.zeros(64).long())], F.cross_entropy))
    small = fx.apply(found, KronOBSPruning(ratio=0.25, damping=1e-9, round_to=1))
    torch.testing.assert_close(small(x), found(x), rtol=1e-5, atol=1e-5)
    assert small.module.get_parameter("0.weight").shape == (3, 3)


def test_the_repr_of_a_pass_makes_it_again() -> None:
    one = KronOBSPruning(0.5, labels="data", damping=0.1, update=False)
    assert eval(repr(one), vars(passes)) == one


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(PlanError, match="Kron-OBS looks at data and there are none"):
        KronOBSPruning(ratio=0.5).plan(program("mlp"))
    with pytest.raises(PlanError, match="damping must be a number above 0"):
        KroneckerSurgeon(damping=0)
    model, args, _ = build("swiglu")
    task = fx.Task([(args[0], torch.zeros(2).long())], lambda y, t: y.sum())
    with pytest.raises(PlanError, match="take the data's own with labels='data'"):
        KronOBSPruning(ratio=0.5).plan(fx.compile(model, args, task=task))


def test_a_layer_that_no_gradient_reaches_weighs_nothing() -> None:
    """Its values choose rows of a table; they are read, but not through anything smooth."""

    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.choose, self.table = nn.Linear(4, 6), nn.Embedding(6, 8)
            self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.stack((self.choose(x), self.choose(x) * 0.5)).sum(0).argmax(-1)
            return self.head(F.relu(self.up(x)) + self.table(rows))  # type: ignore[no-any-return]

    x, labels = normal(5, 4).double(), torch.arange(5) % 3
    task = fx.Task([(x, labels)], F.cross_entropy)
    dense = fx.compile(Chooser().double(), (x,), task=task)
    factors = factors_of(dense, dense.maps, "the test")["choose.weight"]
    assert factors.outputs.shape == (6, 6)
    assert not bool(factors.outputs.any())
    assert fx.apply(dense, KronOBSPruning(ratio=0.5, round_to=1)).report.verification is not None
