"""What Projective Pruning makes of the part of units that go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.layers.weights import producers
from fxcompress.passes import Projective, ProjectivePruning
from fxcompress.passes.elimination import eliminate
from fxcompress.passes.projective.vectors import vectors_of
from models import randomize
from programs import program
from projected import DOUBLE, groups_of, mlp, parameter, weight

# ---- redistribution


def one_by_hand(rows: Tensor, bias: Tensor, columns: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """One removal of equations 4 to 8, from the definition, at λ = 1e-3."""
    n = len(rows)
    best: tuple[float, int, Tensor] = (float("inf"), 0, torch.zeros(n))
    for unit in range(n):
        others = [j for j in range(n) if j != unit]
        basis = rows[others]
        gram = basis @ basis.T + 1e-3 * torch.eye(n - 1, dtype=DOUBLE)
        found = torch.linalg.solve(gram, basis @ rows[unit])
        full = torch.zeros(n, dtype=DOUBLE)
        full[others] = found
        distance = float((basis.T @ found - rows[unit]).norm())
        best = min(best, (distance, unit, full), key=lambda each: each[0])
    stay = [j for j in range(n) if j != best[1]]
    share = 1 + alpha * best[2]
    return (rows * share[:, None])[stay], (bias * share)[stay], (columns * share)[:, stay]


def test_redistribution_is_the_written_formula() -> None:
    net = mlp(9, 6, 4)
    found = fx.compile(net, (torch.randn(2, 9, dtype=DOUBLE),))
    once = ProjectivePruning(ratio=1 / 6, round_to=1, alpha=0.4, beta=0.4, gamma=0.4)
    small = fx.apply(found, once)
    names = ("0.weight", "0.bias", "2.weight")
    rows, bias, columns = (parameter(found, name) for name in names)
    expected = one_by_hand(rows, bias, columns, alpha=0.4)
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(parameter(small, name), value, rtol=1e-9, atol=1e-12)
    assert torch.equal(parameter(small, "2.bias"), parameter(found, "2.bias"))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_behind_a_norm_what_layer_and_norm_compute_is_scaled(affine: bool, bias: bool) -> None:
    """Effective rows and biases by their products; statistics and filters are kept."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.Conv2d(8, 2, 3),
    )
    found = fx.compile(randomize(net).double(), (torch.randn(2, 3, 7, 7, dtype=DOUBLE),))
    method = Projective(rows="effective", alpha=0.3, beta=0.6, gamma=0.0, rescoring="scaled")
    group = found.groups[0]
    kept = method.score(found, group)[0].argsort(descending=True)[:5].sort().values
    edits = method.edits(found, group, kept)
    small = found.with_values({e.parameter: e.value for e in edits if isinstance(e, fx.Replace)})
    (vectors,) = vectors_of(found, group, "effective")
    own = eliminate(vectors, 3, 1e-3, rescoring="scaled", alpha=0.3)
    (before,), (after,) = producers(found, group), producers(small, group)
    alpha, beta = (own.factors(share)[0] for share in (0.3, 0.6))
    torch.testing.assert_close(
        after.normed[0], alpha[:, None] * before.normed[0], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        after.offsets[0], beta[:, None] * before.offsets[0], rtol=1e-12, atol=1e-12
    )
    changed = {edit.parameter for edit in edits if isinstance(edit, fx.Replace)}
    if affine:
        assert changed >= {"1.weight", "1.bias"}
        for name in ("0.weight", "1.running_mean", "1.running_var"):
            assert torch.equal(small.module.state_dict()[name], found.module.state_dict()[name])


def test_depthwise_layers_follow() -> None:
    found = program("grouped_conv")
    small = fx.apply(
        found, ProjectivePruning(ratio=0.25, round_to=1, include="grouped.0.weight:out")
    )
    filters = parameter(small, "depthwise.0.weight").flatten(1)
    old = parameter(found, "depthwise.0.weight").flatten(1)
    assert all(any(torch.equal(row, other) for other in old) for row in filters)


def test_gated_units_are_given_back_in_what_reads_them() -> None:
    """Scaling gate and up both would scale their product twice."""
    found = program("swiglu")
    small = fx.apply(found, ProjectivePruning(ratio=0.5, round_to=1, include="gate.weight:out"))
    for name in ("gate.weight", "up.weight"):
        rows, old = parameter(small, name), parameter(found, name)
        assert all(any(torch.equal(row, other) for other in old) for row in rows)
    assert not torch.isin(parameter(small, "down.weight"), parameter(found, "down.weight")).all()


def test_tied_weights_are_scaled_once() -> None:
    found = program("tied_language_model")
    group = next(group for group in groups_of(found) if group.name.startswith("head"))
    method = Projective(alpha=0.0, beta=0.0, gamma=0.5)
    edits = method.edits(found, group, torch.arange(5))
    values = {edit.parameter: edit.value for edit in edits if isinstance(edit, fx.Replace)}
    assert torch.equal(
        values.get("head.weight", parameter(found, "head.weight")), parameter(found, "head.weight")
    )


def test_units_that_another_criterion_chose_are_given_back_too() -> None:
    found = fx.compile(mlp(9, 8, 4), (torch.randn(2, 9, dtype=DOUBLE),))
    group = found.groups[0]
    kept = torch.tensor([0, 3, 4, 7])
    edits = Projective(rescoring="exact").edits(found, group, kept)
    among = torch.ones(8, dtype=torch.bool)
    among[kept] = False
    (vectors,) = vectors_of(found, group)
    own = eliminate(vectors, 4, 1e-3, rescoring="exact", alpha=0.5, among=among)
    values = {edit.parameter: edit.value for edit in edits if isinstance(edit, fx.Replace)}
    expected = parameter(found, "0.weight") * own.factors(0.5)[0][:, None]
    torch.testing.assert_close(values["0.weight"], expected)


def test_clipped_factors_are_reported() -> None:
    net = mlp(9, 6, 4)
    weight(net, 0)[4] = -0.2 * weight(net, 0)[1]
    found = fx.compile(net, (torch.randn(2, 9, dtype=DOUBLE),))
    group = found.groups[0]
    stay = torch.tensor([0, 2, 3, 4, 5])
    for safe, words in ((True, "1 factors of units clipped"), (False, "changed their sign")):
        own = Projective(safe=safe, lam=1e-8).prepare(found, (group,))
        own.edits(found, group, stay)
        assert any(words in note for note in own.notes)


# ---- linear compensation


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_a_twin_costs_nothing(name: str) -> None:
    """A unit that is there twice is made up for exactly, through a ReLU, and a norm or none."""
    layer: nn.Sequential
    if name == "conv":
        layer = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * 4, 3),
        )  # fmt: skip
        x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    else:
        layer, x = mlp(9, 6, 5, 3), torch.randn(2, 9, dtype=DOUBLE)
    net = layer.double()
    randomize(net)
    with torch.no_grad():
        for value in [*net[0].parameters(), *net[1].parameters(), *net[1].buffers()]:
            if value.dim():
                value[4] = value[1]
    found = fx.compile(net, (x,))
    once = ProjectivePruning(
        ratio=1 / 6,
        include="0.weight:out",
        lam=1e-9,
        rows="effective",
        reconstruction="linear",
        round_to=1,
    )
    small = fx.apply(found, once)
    assert parameter(small, "0.weight").shape[0] == 5
    # λ = 1e-9 of squared lengths around 1
    torch.testing.assert_close(small(x), net(x), rtol=1e-6, atol=1e-7)


def test_a_linear_net_in_the_span_loses_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4)).double()
    x = torch.randn(5, 3, dtype=DOUBLE)
    found = fx.compile(net, (x,))
    small = fx.apply(found, ProjectivePruning(
        ratio=0.5, lam=1e-10, rows="effective", reconstruction="linear", round_to=1
    ))  # fmt: skip
    torch.testing.assert_close(small(x), net(x), rtol=1e-6, atol=1e-7)
