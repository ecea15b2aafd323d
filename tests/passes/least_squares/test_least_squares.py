"""The laws of least squares: what is lost nothing is, and the layer that reads is the solution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from fxcompress.passes import (
    LeastSquares,
    LeastSquaresPruning,
    Magnitude,
    Selection,
    StructuredPass,
)
from refitted import EXACT, Gated, Vision, close, compiled, made


@pytest.mark.parametrize(
    ("name", "group", "duplicate"),
    [
        ("vision", "first", "first.weight norm depthwise"),
        ("vision", "second", "second"),
        ("gated", "gate", "gate up"),
    ],
)
@pytest.mark.parametrize("centred", [False, True])
def test_a_duplicate_goes_first_and_nothing_changes(
    name: str, group: str, duplicate: str, centred: bool
) -> None:
    """Through BatchNorm, GELU, depthwise, pooling and a gate."""
    model, x = made(name, duplicate)
    if centred:  # a constant at the border of a padded map is no constant
        pytest.skip("padded") if group == "first" else None
    method = LeastSquares(lambda_rel=EXACT, centred=centred)
    program = compiled(model, x)
    found = program.group(group)

    score = method.prepare(program, (found,)).score(program, found)

    assert int(score.argmin()) in (1, 3)
    share = 1.01 / found.units
    small = fx.apply(
        program,
        LeastSquaresPruning(
            ratio=share, lambda_rel=EXACT, centred=centred, include=f"{group}.weight:out",
            round_to=1,
        ),
    )  # fmt: skip
    assert small.report.params.after < small.report.params.before
    close(small(x), model(x))


def test_a_combination_of_positive_units_is_given_back_through_a_linear_path() -> None:
    """In the span, not only a duplicate: no activation stands between."""
    model = models.randomize(nn.Sequential(nn.Linear(9, 6, bias=False), nn.Linear(6, 3))).double()
    with torch.no_grad():
        model[0].weight[5] = 0.3 * model[0].weight[0] - 2.0 * model[0].weight[2]  # type: ignore[index]
    x = torch.randn(40, 9, dtype=torch.float64)
    small = compiled(model, x, passes=[LeastSquaresPruning(ratio=0.17, lambda_rel=EXACT)])
    assert small.module.get_parameter("0.weight").shape == (5, 9)
    close(small(x), model(x))


def reconstruction(name: str, method: Any) -> float:
    model, x = made(name)
    small = compiled(model, x, passes=[method])
    gap: Tensor = (small(x) - model(x)).square().mean()
    return gap.item()


@pytest.mark.parametrize(("name", "layer"), [("vision", "second"), ("gated", "gate")])
@pytest.mark.parametrize("centred", [False, True])
def test_refitting_is_never_worse_than_deleting_on_its_data(
    name: str, layer: str, centred: bool
) -> None:
    limits = {"ratio": 0.5, "include": f"{layer}.weight:out", "round_to": 1}
    fit = LeastSquares(lambda_rel=1e-9, centred=centred)
    for criterion in (Magnitude(), fit):
        plain = StructuredPass(criterion=criterion, reconstruction=Selection(), **limits)  # type: ignore[arg-type]
        refit = StructuredPass(criterion=criterion, reconstruction=fit, **limits)  # type: ignore[arg-type]
        assert reconstruction(name, refit) < reconstruction(name, plain)
    both = reconstruction(name, LeastSquaresPruning(lambda_rel=1e-9, centred=centred, **limits))  # type: ignore[arg-type]
    other = StructuredPass(criterion=Magnitude(), reconstruction=fit, **limits)  # type: ignore[arg-type]
    assert both <= reconstruction(name, other)


def test_the_refitted_layer_is_the_least_squares_solution() -> None:
    """Compared with torch.linalg.lstsq on the very activations (a ridge of nothing)."""
    model, x = made("gated")
    small = compiled(model, x, passes=[LeastSquaresPruning(ratio=0.5, lambda_rel=EXACT)])
    assert isinstance(model, Gated)
    h = F.silu(model.gate(x)) * model.up(x)
    rows = small.module.get_parameter("gate.weight")
    kept = [int((model.gate.weight == row).all(1).nonzero()) for row in rows]
    solution = torch.linalg.lstsq(h[:, kept], h @ model.down.weight.T).solution
    torch.testing.assert_close(
        small.module.get_parameter("down.weight"), solution.T, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("centred", [False, True])
def test_a_convolution_is_refitted_as_by_im2col(centred: bool) -> None:
    """Every tap of the units that stay has a coefficient of its own, zeros of the border count."""
    model, x = made("vision")
    assert isinstance(model, Vision)
    limits: Any = {"ratio": 0.5, "include": "first.weight:out", "round_to": 1}
    method = LeastSquaresPruning(**limits, lambda_rel=EXACT, centred=centred)
    small = compiled(model, x, passes=[method])
    stay = small.kept["first.weight"][0]
    assert stay is not None
    h = F.relu(model.depthwise(F.gelu(model.norm(model.first(x)))))
    patches = F.unfold(h[:, stay], 3, padding=1).movedim(1, 2).flatten(0, 1)
    given = F.conv2d(h, model.second.weight, padding=1).flatten(2).movedim(1, 2).flatten(0, 1)
    if centred:  # the bias is free
        patches = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(patches, given).solution
    weight = small.module.get_parameter("second.weight")
    # a ridge of 1e-12 of the signal, and a Gram matrix squares the condition
    torch.testing.assert_close(weight.flatten(1).T, best[: 9 * len(stay)], rtol=1e-6, atol=1e-7)
    if centred:
        shift = small.module.get_parameter("second.bias") - model.get_parameter("second.bias")
        torch.testing.assert_close(shift, best[-1], rtol=1e-6, atol=1e-7)


def test_taps_of_a_kernel_may_share_their_coefficients() -> None:
    """One coefficient for each channel: least squares over positions, not over kernel taps."""
    model, x = made("vision")
    assert isinstance(model, Vision)
    h = F.relu(model.depthwise(F.gelu(model.norm(model.first(x)))))
    rows = h.movedim(1, 0).flatten(1)
    gram = rows @ rows.T / rows.shape[1]
    lam = 1e-3 * gram.trace() / 8
    limits: Any = {"ratio": 0.5, "include": "first.weight:out", "round_to": 1}
    small = compiled(model, x, passes=[LeastSquaresPruning(**limits, taps=False)])
    stay = small.kept["first.weight"][0]
    assert stay is not None
    gone = torch.tensor([i for i in range(8) if i not in stay])
    ridged = gram[stay][:, stay] + lam * torch.eye(len(stay), dtype=torch.float64)
    q = torch.linalg.solve(ridged, gram[stay][:, gone])
    old = model.second.weight
    expected = old[:, stay] + torch.einsum("oprs,kp->okrs", old[:, gone], q)
    close(small.module.get_parameter("second.weight"), expected)


def test_batches_and_their_order_do_not_matter() -> None:
    model, x = made("vision")
    method = LeastSquaresPruning(ratio=0.5)
    whole = compiled(model, x, passes=[method])
    cut = fx.compile(model, (x,), task=list(x[torch.randperm(32)].split((3, 20, 9))))
    again = fx.apply(cut, method)
    for (name, a), b in zip(
        whole.module.state_dict().items(), again.module.state_dict().values(), strict=True
    ):
        close(a, b, msg=name)
