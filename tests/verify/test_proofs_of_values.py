"""Constants and new values have proofs of their own, by another route than the rewriter's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.plan import Edit, Offset, Plan, Project, Reparametrize, Replace
from fxcompress.edit.rewrite import rewrite
from fxcompress.graph.parameters import find_tensor
from fxcompress.program import Program
from fxcompress.report import Check
from fxcompress.verify import verify
from models import normal
from programs import program

ROUNDING = 1e-10  # float64: sums of a few dozen terms in another order


def values(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).double()


def shifted(dense: Program, name: str) -> list[Edit]:
    """Two thirds of the units, mixed, with a constant beside them, for two neighbouring groups."""
    edits: list[Edit] = []
    for number, group in enumerate(g for g in dense.groups if g.name in name.split("+")):
        k, n = max(1, 2 * group.units // 3), group.units
        shift = values(n, seed=number)
        edits.append(
            Project(group, values(k, n, seed=number), values(n, k, seed=number + 2), shift)
        )
    return edits


CASES: dict[str, tuple[str, Any]] = {
    "a shift": ("mlp", lambda d: shifted(d, "first")),
    "shifts of neighbours": ("mlp", lambda d: shifted(d, "first+second")),
    "an offset": ("mlp", lambda d: [Offset("second.weight", values(d_out(d, "second.weight")))]),
    "an offset beside a selection": (
        "mlp",
        lambda d: [
            Offset("second.weight", values(d_out(d, "second.weight"))),
            Project(d.group("second"), torch.arange(0, d.group("second").units, 2)),
        ],
    ),
    "an offset into a norm": (
        "conv_chain",
        lambda d: [Offset("first.0.weight", values(d_out(d, "first.0.weight")))],
    ),
    "a value": ("mlp", lambda d: [Replace("head.bias", values(d_out(d, "head.bias")))]),
    "a masked value": ("mlp", lambda d: masked(d, "first.weight")),
    "a module": ("mlp", lambda d: [Reparametrize("first.weight", nn.Tanh())]),
}
KINDS = {"a shift": "scattered", "an offset": "offset", "a value": "replaced"}


def d_out(dense: Program, name: str) -> int:
    value = find_tensor(dense.module, name)
    assert value is not None
    return len(value)


def masked(dense: Program, name: str) -> list[Edit]:
    value = find_tensor(dense.module, name)
    assert value is not None
    mask = values(*value.shape) > 0
    return [Replace(name, torch.where(mask, values(*value.shape, seed=1), 0.0), mask)]


def case(name: str) -> tuple[Program, Plan]:
    net, make = CASES[name]
    dense = program(net)
    return dense, Plan(tuple(make(dense)))


def checked(dense: Program, plan: Plan, module: Any) -> Check:
    coupling = dense.analysis.coupling
    return verify(dense.module, module, coupling, plan, dense.args, dense.kwargs)


@pytest.mark.parametrize("name", CASES)
def test_what_the_plan_says_is_what_the_dense_graph_gives(name: str) -> None:
    dense, plan = case(name)
    done = rewrite(dense.module, dense.analysis.coupling, plan)
    check = checked(dense, plan, done.module)
    assert check.ok
    assert check.compared
    assert check.kind == KINDS.get(name, check.kind)
    assert check.max_relative_error is not None
    assert check.max_relative_error <= ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_any_other_bit_is_refused(name: str) -> None:
    """Each tensor of the program in turn is a little off; every one of them changes the outputs
    or is not what the plan says.
    """
    dense, plan = case(name)
    done = rewrite(dense.module, dense.analysis.coupling, plan)
    for tensor, value in done.module.named_parameters():
        faulty = copy.deepcopy(done.module)
        with torch.no_grad():
            faulty.get_parameter(tensor).copy_(value + 0.01 * (value.abs() + 1))
        with pytest.raises(fx.VerificationError):
            checked(dense, plan, faulty)


def test_a_masked_entry_that_is_not_zero_is_refused() -> None:
    dense, plan = case("a masked value")
    faulty = rewrite(dense.module, dense.analysis.coupling, plan).module
    edit = plan.edits[0]
    assert isinstance(edit, Replace)
    assert edit.mask is not None
    with torch.no_grad():
        faulty.get_parameter(edit.parameter)[~edit.mask] = 1e-300  # no output shows it
    with pytest.raises(fx.VerificationError, match=r"first\.weight"):
        checked(dense, plan, faulty)
