"""torch-pruning on our groups: its scores are its own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import fxcompress as fx
from fxcompress import passes
from fxcompress.budget import Budget
from fxcompress.errors import PlanError
from fxcompress.passes import TorchPruning, TorchPruningPass
from fxcompress.passes.torch_pruning.groups import present
from fxcompress.program import Program
from models import build, normal
from programs import program
from sides import ours_by_layers, sides_of

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


def _close(found: Tensor, expected: Tensor) -> None:
    """Its sums are in float32, whatever the weights are."""
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


# ---- scores


@pytest.mark.parametrize(
    ("importance", "options", "expected"),
    [
        ("MagnitudeImportance", {"p": 1, "group_reduction": "first"}, "l1_first"),
        ("MagnitudeImportance", {"group_reduction": "first"}, "l2sq_first"),
        ("MagnitudeImportance", {"p": 1}, "l1_group_mean"),
        ("MagnitudeImportance", {}, "l2sq_group_mean"),
        ("MagnitudeImportance", {"normalizer": "mean"}, "mean_normalised_l2"),
        ("BNScaleImportance", {}, "bn"),
        ("FPGMImportance", {}, "fpgm_tp"),
        ("LAMPImportance", {"normalizer": "lamp"}, "lamp_group"),
    ],
)
def test_scores_are_the_reference_ones(
    scored: Program,
    reference_scores: dict[str, Tensor],
    importance: Any,
    options: Any,
    expected: str,
) -> None:
    criterion = TorchPruning(importance=importance, options={"normalizer": None} | options)
    score = criterion.score(scored, scored.group("first"))
    _close(score[0], reference_scores[expected])


@pytest.mark.parametrize(
    ("vector", "expected"), [(False, "taylor_sum_abs"), (True, "taylor_multi")]
)
def test_taylor_on_given_gradients_is_the_reference_one(
    scored: Program, reference_scores: dict[str, Tensor], vector: bool, expected: str
) -> None:
    presented = present(tp, scored, scored.group("first"))
    presented.set_gradients(
        {
            "first.weight": reference_scores["grad_producer"],
            "second.weight": reference_scores["grad_consumer"],
            "norm.weight": reference_scores["bn_grad"],
            "norm.bias": torch.zeros(5),
        }
    )
    scorer = tp.importance.TaylorImportance(normalizer=None, multivariable=vector)
    _close(scorer(presented.group).double(), reference_scores[expected])


def _loss(output: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels)


def _labelled(name: str, batch: int = 6) -> tuple[nn.Module, tuple[Any, ...], Tensor, Tensor]:
    model, args, _ = build(name)
    inputs = normal(batch, *args[0].shape[1:], seed=3).double()
    return model, args, inputs, torch.arange(batch) % model(inputs).shape[1]


@pytest.mark.parametrize("name", ["conv_chain", "projected_residual", "squeeze_excite"])
@pytest.mark.parametrize(
    ("importance", "options"),
    [
        ("MagnitudeImportance", {"bias": True}),
        ("FPGMImportance", {"group_reduction": "max"}),
        ("LAMPImportance", {}),
        ("TaylorImportance", {}),
        ("HessianImportance", {"normalizer": "max"}),
    ],
)
def test_scores_are_what_the_library_says_of_the_model_itself(
    name: str, importance: Any, options: dict[str, Any]
) -> None:
    model, args, inputs, labels = _labelled(name)
    ours = fx.compile(model, args, task=fx.Task([(inputs, labels)], _loss))
    criterion = TorchPruning(importance=importance, options=options).prepare(
        ours, [group for group in ours.groups if not group.frozen]
    )
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=args)
    scorer = getattr(tp.importance, importance)(**options)
    for loss in F.cross_entropy(model(inputs), labels, reduction="none"):
        if importance == "HessianImportance":
            model.zero_grad()
            loss.backward(retain_graph=True)
            scorer.accumulate_grad(model)
    if importance == "TaylorImportance":
        model.zero_grad()
        _loss(model(inputs), labels).backward()
    known = ours_by_layers(ours, model)
    compared = 0
    for group in graph.get_all_groups():
        own = known.get(sides_of(graph, group))
        if own is not None and not own.frozen:
            score = criterion.score(ours, own)
            _close(score.flatten(), scorer(group).double())
            compared += 1
    assert compared >= 2


def test_of_the_samples_that_its_hessian_is_shown_only_the_last_counts() -> None:
    model, args, inputs, labels = _labelled("conv_chain")
    batches = [(inputs, labels)], [(inputs[-1:], labels[-1:])], [(inputs[:1], labels[:1])]
    scores = []
    for data in batches:
        found = fx.compile(model, args, task=fx.Task(data, _loss))
        scores.append(
            TorchPruning(importance="HessianImportance").score(found, found.group("first.0"))
        )
    _close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2], rtol=1e-2)


def test_obdc_weighs_squares_by_the_mean_square_of_the_gradient() -> None:
    model, args, inputs, labels = _labelled("mlp")
    found = fx.compile(model, args, task=fx.Task([(inputs, labels)], _loss))
    options = {"normalizer": None, "num_classes": 3}
    score = TorchPruning(importance="OBDCImportance", options=options).score(
        found, found.group("first")
    )
    squares = []
    for at in range(len(inputs)):
        model.zero_grad()
        _loss(model(inputs[at : at + 1]), labels[at : at + 1]).backward()
        squares.append(model.get_parameter("first.weight").grad.square())  # type: ignore[union-attr]
    expected = (model.get_parameter("first.weight").square() * torch.stack(squares).mean(0)).sum(1)
    _close(score[0], expected.detach())


def test_obdc_scores_convolutions_beside_norms() -> None:
    model, args, inputs, labels = _labelled("projected_residual")
    found = fx.compile(model, args, task=fx.Task([(inputs, labels)], _loss))
    small = fx.apply(found, TorchPruningPass(ratio=0.4, importance="OBDCImportance", round_to=1))
    assert small.report.checks[-1].ok


def test_random_scores_are_the_same_again_and_leave_the_generator_alone() -> None:
    found, criterion = program("conv_chain"), TorchPruning(importance="RandomImportance")
    state = torch.get_rng_state()
    first, again = (criterion.score(found, found.group("first.0")) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], criterion.score(found, found.group("second.0"))[0, :7])


# ---- passes and refusals


def test_a_model_is_pruned_by_its_scores() -> None:
    half = TorchPruningPass(budget=Budget(flops=0.5, allocation="global"))
    small = fx.apply(program("conv_chain"), half)
    assert small.report.flops.ratio <= 0.5
    assert small.report.checks[-1].kind == "zero-masked"


@pytest.mark.parametrize(
    "one",
    [
        TorchPruningPass(ratio=0.5),
        TorchPruningPass(0.5, importance="FPGMImportance", options={"p": 1}),
    ],
)
def test_the_repr_of_a_pass_makes_it_again(one: object) -> None:
    assert eval(repr(one), vars(passes)) == one


def test_a_class_that_there_is_not_is_refused() -> None:
    words = "importance must be .*, not .Magnitude.; did you mean .MagnitudeImportance"
    with pytest.raises(PlanError, match=words):
        TorchPruning(importance="Magnitude")  # type: ignore[arg-type]


def test_groups_that_it_cannot_score_are_named() -> None:
    plan = TorchPruningPass(ratio=0.5, include="qkv.weight:out").plan(program("fused_attention"))
    assert any("qkv:heads stays whole: it has 5 units of 12 places each" in n for n in plan.notes)
    with pytest.raises(PlanError, match="BNScaleImportance scores none of its layers"):
        TorchPruningPass(ratio=0.5, importance="BNScaleImportance").plan(program("mlp"))


def test_without_data_there_are_no_gradients() -> None:
    with pytest.raises(PlanError, match="TaylorImportance looks at data and there are none"):
        TorchPruningPass(ratio=0.5, importance="TaylorImportance").plan(program("mlp"))


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(PlanError, match="pip install torch-pruning"):
        TorchPruningPass(ratio=0.5).plan(program("mlp"))
