"""Magnitude scores: the reference values, aggregates, and weights that hold units twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.passes import (
    Magnitude,
    MagnitudePruning,
)
from fxcompress.passes.structured.scores import MemberRole
from fxcompress.program import Program
from planned import kept
from programs import program

ALL: tuple[MemberRole, ...] = ("produce", "contract", "affine")


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (Magnitude(p=1, aggregate="first", normaliser="none"), "l1_first"),
        (Magnitude(p=2, aggregate="first", normaliser="none"), "l2sq_first"),
        (Magnitude(p=1, normaliser="none", roles=ALL), "l1_group_mean"),
        (Magnitude(p=2, normaliser="none", roles=ALL), "l2sq_group_mean"),
        (Magnitude(p=2, normaliser="mean", roles=ALL), "mean_normalised_l2"),
        (Magnitude(p=1, normaliser="none", roles=("affine",)), "bn"),
    ],
    ids=str,
)
def test_scores_are_the_reference_ones(
    scored: Program, reference_scores: dict[str, Tensor], criterion: Magnitude, expected: str
) -> None:
    score = criterion.score(scored, scored.group("first"))
    torch.testing.assert_close(score[0], reference_scores[expected], rtol=1e-9, atol=1e-10)


def test_aggregates_and_normalisers_relate_as_their_names_say(scored: Program) -> None:
    group = scored.group("first")

    def score(**options: Any) -> Tensor:
        return Magnitude(roles=ALL, **options).score(scored, group)

    plain = {name: score(aggregate=name, normaliser="none") for name in ("mean", "sum", "max")}
    torch.testing.assert_close(plain["sum"], 3 * plain["mean"])
    assert bool((plain["max"] >= plain["mean"]).all())
    assert float(score(normaliser="max").max()) == pytest.approx(1)
    assert float(score(normaliser="mean").mean()) == pytest.approx(1)


def test_the_units_with_the_largest_rows_stay() -> None:
    found = program("mlp")
    weight = dict(found.module.named_parameters())["second.weight"]
    rows = weight.detach().abs().sum(1)
    index = kept(MagnitudePruning(ratio=0.5, p=1, round_to=1).plan(found))["second"]
    assert set(index.tolist()) == set(rows.topk(len(index)).indices.tolist())


def test_a_weight_that_both_makes_and_reads_its_units_is_scored_by_the_asked_axis() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.enter, self.head = nn.Linear(6, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.head(x + self.inner(x))  # type: ignore[no-any-return]

    net = Square()
    found = fx.compile(net, (torch.randn(2, 4),))
    (group,) = (each for each in found.groups if not each.frozen)
    score = Magnitude(p=2, normaliser="none", aggregate="sum").score(found, group)
    expected = net.enter.weight.square().sum(1) + net.inner.weight.square().sum(1)
    torch.testing.assert_close(score[0].float(), expected.detach())
