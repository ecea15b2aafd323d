"""Least squares on heads, in sequence, through several readers and ties, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fxcompress as fx
import models
from fxcompress.edit.plan import Plan, Project
from fxcompress.errors import BudgetError, PlanError
from fxcompress.layers.weights import consumers
from fxcompress.passes import (
    LeastSquares,
    LeastSquaresPruning,
)
from fxcompress.program import Program
from fxcompress.stats import observe
from refitted import EXACT, close, compiled, made

# ---- heads, cells, several readers, ties


@pytest.mark.parametrize(
    "name", ["fused_attention", "rotary_grouped_attention", "grouped_conv", "projected_residual",
             "reused_module", "dense_concat", "flatten_head", "squeeze_excite", "padded_residual"],
)  # fmt: skip
@pytest.mark.parametrize("centred", [False, True])
def test_every_group_that_a_layer_reads_can_be_refitted(name: str, centred: bool) -> None:
    """The proof of the compiler holds: the result is the dense model with the new values, masked.

    On the data the outputs are nearer to those of the dense model than without.
    """
    model, args, kwargs = models.build(name)
    x = models.rebatch(args, 16)[0]
    program = fx.compile(model, args, kwargs, task=[x])
    groups = [g for g in program.groups if not g.frozen and consumers(program, g)]
    for group in (g for g in groups if g.units > 1):
        fit = LeastSquares(lambda_rel=1e-6, centred=centred).prepare(program, (group,))
        score = fit.score(program, group)
        assert score.shape == (group.cells, group.units)
        assert all(len(row.unique()) == group.units for row in score)
        kept = score.argsort(1, descending=True)[:, : (group.units + 1) // 2].sort(1).values
        edits = fit.edits(program, group, kept if group.cells > 1 else kept[0])
        small = fx.apply(program, _Fixed(Plan(edits)))
        plain = fx.apply(program, _Fixed(Plan(tuple(e for e in edits if isinstance(e, Project)))))
        assert small.report.checks[-1].kind == "zero-masked"
        calls = [one.node for one in consumers(program, group)]
        if len(calls) == 1 and not centred:
            node = calls[0]
            # 1e-20 for squares of rounding errors, where nothing but copies goes
            assert _gap(small, program, node) <= _gap(plain, program, node) + 1e-20


class _Fixed:
    def __init__(self, plan: Plan) -> None:
        self.made = plan

    def plan(self, program: Program) -> Plan:
        return self.made


def _gap(found: Program, dense: Program, node: str) -> float:
    """How far apart two programs are at a node, on the data of both."""
    outputs = []
    for program in (found, dense):
        seen: list[Tensor] = []
        tap: Any = partial(_keep, seen)
        observe(program, {node: tap})
        outputs.append(torch.cat(seen))
    return (outputs[0] - outputs[1]).square().mean().item()


def _keep(seen: list[Tensor], value: Tensor) -> None:
    seen.append(value.clone())


@pytest.mark.parametrize("centred", [False, True])
def test_in_sequence_each_layer_makes_up_for_those_before_it(centred: bool) -> None:
    model, x = made("vision")
    limits: Any = {"ratio": 0.5, "lambda_rel": 1e-6, "round_to": 1, "centred": centred}
    plain = compiled(model, x, passes=[LeastSquaresPruning(**limits)])
    after = compiled(model, x, passes=[LeastSquaresPruning(**limits, sequential=True)])
    close(after.module.get_parameter("second.weight"), plain.module.get_parameter("second.weight"))
    dense = model(x)
    assert (after(x) - dense).square().sum() < (plain(x) - dense).square().sum()
    if not centred:  # the last layer is the best that its new inputs allow
        seen: list[Tensor] = []
        tap: Any = partial(_keep, seen)
        observe(after, {"flatten": tap})
        best = torch.linalg.lstsq(seen[0], dense - model.get_parameter("head.bias")).solution
        # a ridge of 1e-6 of the signal
        torch.testing.assert_close(
            after.module.get_parameter("head.weight"), best.T, rtol=1e-2, atol=1e-3
        )


def test_tied_weights_are_left_and_noted() -> None:
    model, args, _ = models.build("tied_language_model")
    small = fx.compile(
        model, args, task=[args[0]], passes=[LeastSquaresPruning(ratio=0.3, min_units=4)]
    )
    assert any("was not refitted" in note for run in small.report.passes for note in run.notes)


def test_wide_inputs_share_the_matrix_of_their_units() -> None:
    model, x = made("vision", "second")
    limits: Any = {"ratio": 0.18, "include": "second.weight:out", "round_to": 1}
    small = compiled(model, x, passes=[LeastSquaresPruning(**limits, inputs=8, lambda_rel=EXACT)])
    close(small(x), model(x))  # the duplicate is one for every position alike


def test_taps_of_wide_kernels_share_coefficients_and_the_report_says_so() -> None:
    model, x = made("vision")
    limits: Any = {"ratio": 0.5, "include": "first.weight:out", "round_to": 1}
    small = compiled(model, x, passes=[LeastSquaresPruning(**limits, inputs=71)])  # 8 x 9 taps
    assert any("share their coefficients" in note for note in small.report.passes[-1].notes)
    other = compiled(model, x, passes=[LeastSquaresPruning(**limits, taps=False)])
    name = "second.weight"
    close(small.module.get_parameter(name), other.module.get_parameter(name))
    whole = compiled(model, x, passes=[LeastSquaresPruning(**limits, inputs=72)])
    assert not whole.report.passes[-1].notes


# ---- bad input


def test_without_data_it_says_what_to_pass() -> None:
    model, x = made("gated")
    with pytest.raises(PlanError, match=r"Pruning looks at data and there are none; pass"):
        fx.compile(model, (x,), passes=[LeastSquaresPruning(ratio=0.5)])


def test_queries_and_keys_stay_whole_with_the_reason() -> None:
    """No layer reads them; alone in scope they are an error, beside others a note."""
    model, args, _ = models.build("fused_attention")
    program = fx.compile(model, args, task=[args[0]])
    small = fx.apply(program, LeastSquaresPruning(ratio=0.5))
    assert small.group("qkv:qk").units == program.group("qkv:qk").units
    note = "qkv:qk stays whole: no layer reads it (qk)"
    assert note in small.report.passes[-1].notes
    with pytest.raises(BudgetError, match=r"qkv:qk \(no layer reads it \(qk\)\)"):
        fx.compile(model, args, task=[args[0]], passes=[LeastSquaresPruning(ratio=0.5, dims="qk")])


def test_too_few_samples_without_a_ridge_are_refused() -> None:
    model, x = made("gated")
    with pytest.raises(PlanError, match=r"down.weight depend on each other.*larger lambda_rel"):
        fx.compile(model, (x,), task=[x[:3]], passes=[LeastSquaresPruning(ratio=0.5, lambda_rel=0)])


@pytest.mark.parametrize("options", [{"lambda_rel": -1.0}, {"order": "best"}])
def test_options_that_cannot_be_are_refused(options: Any) -> None:
    with pytest.raises(
        PlanError, match=r"lambda_rel must be .* not -1.0|order must be .* not 'best'"
    ):
        LeastSquaresPruning(ratio=0.5, **options)


def test_its_recipe_can_be_read_back() -> None:
    text = repr(LeastSquaresPruning(ratio=0.5, centred=True))
    assert text == "LeastSquaresPruning(ratio=0.5, centred=True)"
