"""SliceGPT under a LayerNorm: every array of the reference, out of the pass's edits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.plan import Edit, Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.graph.captured import CapturedModule
from fxcompress.passes import PrincipalAxes
from fxcompress.passes.slicegpt.axes import mean_first, principal_axes
from fxcompress.passes.slicegpt.method import sliced
from fxcompress.program import Program
from references import Arrays, close, read


def rewritten(found: Program, edits: tuple[Edit, ...]) -> CapturedModule:
    return rewrite(found.module, found.analysis.coupling, Plan(edits)).module


@pytest.fixture(scope="module")
def reference(shared: Path) -> Arrays:
    return read(shared, "slicegpt")


class Read(nn.Module):
    """A stream that is written as it comes in, and read behind a LayerNorm."""

    def __init__(self, arrays: Arrays, eps: float) -> None:
        super().__init__()
        width = arrays["X"].shape[1]
        self.enter = nn.Linear(width, width, bias=False)
        self.norm, self.reader = nn.LayerNorm(width, eps=eps), nn.Linear(width, 5)
        self.double().load_state_dict({
            "enter.weight": torch.eye(width), "norm.weight": arrays["ln_gamma"],
            "norm.bias": arrays["ln_beta"], "reader.weight": arrays["W_in"],
            "reader.bias": arrays["b_in"],
        })  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.norm(self.enter(x)))  # type: ignore[no-any-return]


def compiled(arrays: Arrays, eps: float = 1e-5) -> Program:
    return fx.compile(Read(arrays, eps), (arrays["X"],), task=[arrays["X"]])


def test_turned_readers_have_the_reference_weights(reference: Arrays) -> None:
    """Undo the turn: gains and shifts are in them, and the stream is centred behind its norm."""
    found = compiled(reference)
    close(found(reference["X"]).detach(), reference["out_layernorm"])  # it is that net
    group = found.group("enter")
    values = rewritten(found, PrincipalAxes().edits(found, group, torch.arange(6)))
    weight, basis = values.get_parameter("reader.weight"), values.get_parameter("enter.weight")
    close((weight @ basis).detach(), reference["W_fused"])
    close(values.get_parameter("reader.bias").detach(), reference["b_fused"])
    x = reference["X"] @ basis.detach().mT
    close((x - x.mean(1, keepdim=True)) @ basis.detach(), reference["X_centered"])
    close(values(reference["X"]).detach(), reference["out_rotated"])


def test_principal_axes_are_the_reference_ones(reference: Arrays) -> None:
    """Of Σ x xᵀ as the reference takes it, without the norm's division; their signs are free."""
    x = reference["X_centered"]
    values, axes = principal_axes(x.mT @ x, centred=True)
    close(values[1:], reference["eigenvalues"][:5])
    close((axes[:, 1:].mT @ reference["Q"][:, :5]).abs(), torch.eye(5).double())
    close(axes[:, 0].abs(), reference["Q"][:, 5].abs())  # in which nothing of the centred lies


def test_what_is_left_of_a_layer_norm_follows_the_formula(reference: Arrays) -> None:
    """Its mean and the reference's axes: divided as if all units were still there."""
    kept = int(reference["k"])
    found = compiled(reference, 1e-5 * 6 / (kept + 1))  # of which (kept + 1) / 6 is left
    axes = torch.cat([mean_first(6)[:, :1], reference["Q"][:, :kept]], 1)
    small = rewritten(found, sliced(found, found.group("enter"), axes))
    close(small(reference["X"]).detach(), reference["out_sliced_div_d"])
    assert not torch.allclose(small(reference["X"]), reference["out_sliced_div_k"], rtol=0.1)
