"""The proof of a selection by the dense graph on parameters that are zero. It holds where the one
by masks, which takes the word of the analysis and the masks of the rewriter, is deceived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Interpreter

import fxcompress as fx
from fxcompress.analysis import couple as coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes import transforms as projection
from fxcompress.edit import finalize
from fxcompress.edit.context import Context
from fxcompress.edit.plan import Plan, Project, Reparametrize, Replace
from fxcompress.edit.proof import Proof
from fxcompress.graph.state import run_alone
from fxcompress.program import Program
from fxcompress.report import Check, Report
from fxcompress.rules import responses
from fxcompress.verify.zeroed import obstacle
from models import MODELS, build, normal, randomize
from nets_stateful import STATEFUL
from programs import program
from selection import RandomSelection
from unshielded import MAKES_SOMETHING, WIDTH, Read

ROUNDING = 1e-10  # float64: sums of a few hundred terms in another order
SHARES = (0.25, 0.5, 0.75)
nets = pytest.mark.parametrize("name", MODELS)


def last(found: Program) -> Check:
    return found.report.checks[-1]


@nets
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), share=st.sampled_from(SHARES))
def test_exact_groups_cut_are_the_dense_graph_on_zeros(name: str, seed: int, share: float) -> None:
    check = last(fx.apply(program(name), RandomSelection(seed, share, exact_only=True)))
    assert check.kind == "zero-masked"
    assert check.zeroed_error is not None
    assert check.zeroed_error <= ROUNDING
    assert "parameters alone are zero" in check.compared


@nets
def test_where_it_does_not_apply_the_check_says_why(name: str) -> None:
    dense = program(name)
    plan = RandomSelection(1).plan(dense)
    check = last(fx.apply(dense, RandomSelection(1)))
    exact = all(edit.group.exact for edit in plan.edits if isinstance(edit, Project))
    assert (check.zeroed_error is not None) is exact
    assert ("not with zeroed parameters: " in check.compared) is not exact
    assert exact or "groups are not exact" in check.compared


class Buffer(nn.Module):
    """Adds a number that is no parameter to each unit; nothing shields the sum."""

    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, WIDTH)
        self.register_buffer("numbers", torch.linspace(1.0, 2.0, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.first(x) + self.numbers).sum(-1)
        return out


def cut(model: nn.Module) -> Program:
    model = randomize(model).double().requires_grad_(False)
    if isinstance(model, Buffer):
        model.numbers.copy_(torch.linspace(1.0, 2.0, WIDTH))
    return fx.compile(model, (normal(2, 4).double(),), passes=[RandomSelection(exact_only=True)])


@pytest.mark.parametrize("name", MAKES_SOMETHING)
def test_an_op_wrongly_taken_to_keep_zeros_fails_the_proof_on_zeroed_parameters_alone(
    name: str,
) -> None:
    """The analysis says that nothing comes of zeros; masks and program both believe it."""
    with (
        patch.object(responses, "_FOUND", {}),
        patch.object(responses, "_response", lambda run, masked: "zero"),
    ):
        with pytest.raises(fx.VerificationError, match="zeroed parameters: "):
            cut(Read(MAKES_SOMETHING[name]))
        with patch("fxcompress.verify.obstacle", lambda *_: "left out by this test"):
            assert last(cut(Read(MAKES_SOMETHING[name]))).ok


def test_a_buffer_wrongly_taken_for_a_parameter_fails_the_proof_on_zeroed_parameters_alone() -> (
    None
):
    with patch.object(coupling, "_can_be_zeroed", lambda ctx, name: True):
        with pytest.raises(fx.VerificationError, match="zeroed parameters: "):
            cut(Buffer())
        with patch("fxcompress.verify.obstacle", lambda *_: "left out by this test"):
            assert last(cut(Buffer())).ok


@nets
def test_units_other_than_the_plans_fail_the_proof_on_zeroed_parameters_alone(name: str) -> None:
    """Masks, bits of tensors and the program agree on the neighbours of the units to keep."""
    right = projection._choice_at

    def wrong(factor: Any, choices: Any, *others: Any) -> Tensor:
        index = right(factor, choices, *others)
        return ((index + 1) % factor.size).sort(-1).values if factor in choices else index

    dense = program(name)
    plan = Plan(tuple(e for e in RandomSelection(exact_only=True).plan(dense).edits if _whole(e)))
    if not plan.edits:
        pytest.skip("each group has cells of its own, which have their masks from another function")
    with patch.object(projection, "_choice_at", wrong):
        with pytest.raises(fx.VerificationError, match="zeroed parameters: "):
            fx.apply(dense, Ready(plan))
        with patch("fxcompress.verify.obstacle", lambda *_: "left out by this test"):
            assert last(fx.apply(dense, Ready(plan))).ok


def _whole(edit: Any) -> bool:
    return isinstance(edit, Project) and edit.encode.dim() == 1 and edit.width < edit.group.units


class Ready:
    """A pass with a plan that is made already."""

    def __init__(self, plan: Plan) -> None:
        self.made = plan

    def plan(self, program: Program) -> Plan:
        return self.made

    def __repr__(self) -> str:
        return "Ready()"


def test_new_values_are_put_in_before_the_zeros() -> None:
    dense = program("mlp")
    value = torch.full_like(dense.module.get_parameter("second.weight"), 0.5)
    edits = (*RandomSelection().plan(dense).edits, Replace("second.weight", value))
    check = last(fx.apply(dense, Ready(Plan(edits))))
    assert check.zeroed_error is not None
    assert check.zeroed_error <= ROUNDING


def proof_of(dense: Program, group: ChannelGroup, kept: Tensor) -> Proof:
    return Project(group, kept).proof(Context(dense.module, dense.analysis.coupling))


def test_what_is_mixed_along_and_keeps_all_its_units_is_no_obstacle() -> None:
    dense = program("mlp")
    group = dense.groups[0]
    every = torch.arange(group.units)
    mixed = {group.factor: ("mean (at mean)",)}
    known = replace(dense.analysis.coupling, inexact=mixed)
    assert obstacle(known, proof_of(dense, group, every)) is None
    for index in (every[1:], every.flip(0)):
        words = obstacle(known, proof_of(dense, group, index))
        assert words == f"1 of 1 groups are not exact, such as {group}: mean (at mean)"


def test_single_precision_is_looked_at_in_double() -> None:
    model, args, kwargs = build("conv_chain", torch.float32)
    with patch.dict("fxcompress.verify.compare.TOLERANCE", {torch.float32: -1.0}):
        made = fx.compile(model, args, kwargs, passes=[RandomSelection(exact_only=True)])
    check = last(made)
    assert check.tolerance == ROUNDING
    assert check.zeroed_error is not None
    assert check.zeroed_error <= ROUNDING


def test_draws_of_other_shapes_are_told() -> None:
    model, args, kwargs = STATEFUL["random_noise"]()
    check = last(fx.compile(model, args, kwargs, passes=[RandomSelection()]))
    assert check.ok
    assert check.zeroed_error is None
    assert "random numbers are drawn in other shapes" in check.compared


@pytest.mark.parametrize("exact_only", [True, False])
def test_a_proof_is_two_forward_passes(exact_only: bool) -> None:
    dense, interpreted = program("group_norm"), Interpreter.run
    with (
        patch("fxcompress.verify.trial.run_alone", side_effect=run_alone) as new,
        patch.object(Interpreter, "run", autospec=True, side_effect=interpreted) as reference,
    ):
        check = last(fx.apply(dense, RandomSelection(exact_only=exact_only)))
    assert (check.zeroed_error is not None) is exact_only
    assert (new.call_count, reference.call_count) == (1, 1)


def test_reports_tell_it_and_older_ones_are_read() -> None:
    report = fx.apply(program("mlp"), RandomSelection()).report
    assert "against zeroed parameters" in str(report)
    data = report.to_dict()
    assert data["verification"]["zeroed_error"] == report.checks[-1].zeroed_error
    assert Report.from_dict(data) == report
    for check in data["checks"]:
        del check["zeroed_error"]
    assert Report.from_dict(data).checks[-1].zeroed_error is None


class Scaled(nn.Module):
    """Halves a parameter."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def _values(offset: float) -> Callable[..., Tensor]:
    right = finalize._value
    return lambda *given: right(*given) + offset


def test_a_program_that_is_another_once_finalised_is_refused() -> None:
    one = Ready(Plan((Reparametrize("first.weight", Scaled()),)))
    check = last(fx.apply(program("mlp"), one))
    assert check.compared.endswith("and with those of the new program once finalised")
    with (
        patch("fxcompress.edit.finalize._value", _values(1e-3)),
        pytest.raises(fx.VerificationError, match="finalised: "),
    ):
        fx.apply(program("mlp"), one)
