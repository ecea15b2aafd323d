"""A group that a method cannot take stays whole with its reason; it never ends a compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxcompress as fx
from fxcompress import passes as methods
from fxcompress.program import Program
from models import MODELS, build, normal, randomize, rebatch, tensors
from nets_readers import OTHERS, READERS

HALF: dict[str, Any] = {"ratio": 0.5, "round_to": 1}
PASSES: dict[str, Callable[[], fx.program.Pass]] = {
    "flap": lambda: methods.FLAPPruning(**HALF),
    "folding": lambda: methods.Folding(**HALF),
    "folding over norms": lambda: methods.Folding(**HALF, exact_only=False),
    "fpgm": lambda: methods.FPGMPruning(**HALF),
    "group norm": lambda: methods.GroupNormPruning(**HALF),
    "ippro": lambda: methods.IPPRO(**HALF),
    "kron": lambda: methods.KronOBSPruning(**HALF, labels="data"),
    "lamp": lambda: methods.LAMPPruning(**HALF),
    "least squares": lambda: methods.LeastSquaresPruning(**HALF),
    "least squares centred": lambda: methods.LeastSquaresPruning(**HALF, centred=True),
    "magnitude": lambda: methods.MagnitudePruning(**HALF),
    "n of m": methods.NMSparsity,
    "projective": lambda: methods.ProjectivePruning(**HALF),
    "projective arccos": lambda: methods.ProjectivePruning(
        **HALF, reconstruction="linear", kernel="arccos"
    ),
    "projective linear": lambda: methods.ProjectivePruning(**HALF, reconstruction="linear"),
    "random": lambda: methods.RandomPruning(**HALF),
    "slicegpt": lambda: methods.SliceGPT(**HALF),
    "slimming": lambda: methods.SlimmingPruning(**HALF),
    "taylor": lambda: methods.TaylorPruning(**HALF),
    "wanda": lambda: methods.WandaPruning(**HALF),
    "fold batch norm": methods.FoldBatchNorm,
    "recalibrate": methods.RecalibrateBatchNorm,
}
NETS = (*MODELS, *READERS, *OTHERS)


def loss(output: Any, labels: Tensor) -> Tensor:
    return torch.stack([one.float().square().mean() for one in tensors(output)]).sum()


@cache
def dense(name: str) -> Program:
    if name in MODELS:
        model, args, kwargs = build(name)
    else:
        model = randomize({**READERS, **OTHERS}[name]()).double()
        args, kwargs = (normal(2, 7, 5).double(),), {}
    batches = [(rebatch((args, kwargs), 3, seed), torch.zeros(3)) for seed in (1, 2)]
    task = fx.Task(batches, loss=loss, forward=lambda model, batch: model(*batch[0], **batch[1]))
    return fx.compile(model, args, kwargs, task=task)


def check(name: str, method: str) -> None:
    """The pass runs and is proved, or says why no group at all can be taken."""
    program = dense(name)
    try:
        small = fx.apply(program, PASSES[method]())
    except fx.PlanError as error:
        words = ("no group may lose a unit", "no groups of that kind", "finds no weight")
        if not any(each in str(error) for each in words):
            raise
        return
    assert small.report.checks[-1].ok


@settings(max_examples=120)
@given(name=st.sampled_from(NETS), method=st.sampled_from(sorted(PASSES)))
def test_a_group_that_cannot_be_taken_never_ends_a_compile(name: str, method: str) -> None:
    check(name, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize("name", NETS)
def test_every_pass_takes_every_net_or_says_why_not(name: str, method: str) -> None:
    check(name, method)


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("tied_language_model", "folding over norms", "both writes and reads the units"),
        ("gru", "flap", "is not the weight of linear layers alone"),
        ("lstm", "least squares centred", "is not the weight of linear layers alone"),
        ("transposed_conv", "kron", "has no Kronecker factors"),
        ("transposed_conv", "flap", "has its inputs on axis 0"),
        ("two readers", "folding", "reads the units without a weight"),
    ],
)
def test_the_reason_is_told(name: str, method: str, words: str) -> None:
    program = dense(name)
    try:
        told = "\n".join(fx.apply(program, PASSES[method]()).report.passes[-1].notes)
    except fx.BudgetError as error:
        told = str(error)
    assert words in told
