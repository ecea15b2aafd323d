"""Laws of Projective Pruning on whole programs: plans, scores, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxcompress as fx
from fxcompress.errors import PlanError
from fxcompress.layers.weights import producers
from fxcompress.passes import MagnitudePruning, Projective, ProjectivePruning
from fxcompress.passes.elimination import Vectors, eliminate
from fxcompress.passes.projective.vectors import vectors_of
from programs import PRUNABLE, program
from projected import DOUBLE, groups_of, mlp, parameter, weight

# ---- plans


@pytest.mark.parametrize("name", PRUNABLE)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescoring": "static", "reconstruction": "linear", "rows": "effective"},
        {"aggregate": "mean_of_scores", "reconstruction": "none"},
    ],
)
def test_every_net_shrinks_and_is_proved(name: str, options: dict[str, Any]) -> None:
    """The proof compares with the dense net whose values are replaced and whose units are zero."""
    found = program(name)
    half = ProjectivePruning(ratio=0.5, round_to=1, **options)
    small = fx.apply(found, half)
    assert small.report.params.after < small.report.params.before


@pytest.mark.parametrize("name", PRUNABLE)
def test_nothing_removed_nothing_changed(name: str) -> None:
    found = program(name)
    same = fx.apply(found, ProjectivePruning(ratio=0.0))
    for key, value in found.module.state_dict().items():
        assert torch.equal(same.module.state_dict()[key], value)


def test_the_recipe_tells_what_was_asked() -> None:
    assert repr(ProjectivePruning(ratio=0.5, lam=0.1, safe=True)) == (
        "ProjectivePruning(ratio=0.5, lam=0.1, safe=True)"
    )


# ---- scores


@pytest.mark.parametrize("name", ["mlp", "conv_chain", "grouped_conv", "transposed_conv"])
def test_scores_are_those_of_the_rows(name: str) -> None:
    """For a group that one layer writes: the elimination of its flattened rows, cell by cell."""
    found = program(name)
    for group in groups_of(found):
        own = [each for each in producers(found, group) if not each.filters]
        if len(own) != 1:
            continue
        score = Projective(rescoring="scaled").score(found, group)
        for cell in range(group.cells):
            expected = eliminate(
                Vectors.of_rows(own[0].rows[cell]),
                group.units - 1,
                1e-3,
                rescoring="scaled",
                alpha=0.5,
            )
            torch.testing.assert_close(score[cell], expected.importance)


def test_several_layers_are_side_by_side() -> None:
    """The Gram matrix of a concatenation, of parts of the same mean length."""
    found = program("swiglu")
    group = found.group("gate")
    gate, up = (each.rows[0] for each in producers(found, group))
    parts = [rows / rows.square().sum(1).mean().sqrt() for rows in (gate, up)]
    (vectors,) = vectors_of(found, group)
    rows = torch.cat(parts, 1)
    torch.testing.assert_close(vectors.gram, rows @ rows.T)


def test_the_mean_of_scores_has_mean_one() -> None:
    found = program("conv_chain")
    method = Projective(aggregate="mean_of_scores", reconstruction="none")
    for group in groups_of(found):
        assert float(method.score(found, group).mean()) == pytest.approx(1)


def test_a_relative_ridge_does_not_see_the_scale() -> None:
    net = mlp(5, 12, 3)
    small = fx.compile(net, (torch.randn(2, 5, dtype=DOUBLE),))
    weight(net, 0).mul_(1000)
    large = fx.compile(net, (torch.randn(2, 5, dtype=DOUBLE),))
    method = Projective(relative=True, lam=0.01)
    first, second = (method.score(one, one.groups[0]) for one in (small, large))
    torch.testing.assert_close(1000 * first, second, rtol=1e-6, atol=0)


# ---- what may go wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lam": -1.0}, "lam must be a number of at least 0, not -1.0"),
        ({"rescoring": "lazy"}, "rescoring must be .* not 'lazy'"),
        ({"aggregate": "mean_of_scores"}, "reconstruction='none'"),
        ({"kernel": "arccos"}, "reconstruction='linear'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        ProjectivePruning(ratio=0.5, **options)


def test_weights_that_are_not_finite_are_named() -> None:
    found = fx.compile(mlp(5, 8, 3), (torch.randn(2, 5, dtype=DOUBLE),))
    parameter(found, "0.weight")[2, 1] = torch.nan
    with pytest.raises(PlanError, match=r"0\.weight has entries that are not finite"):
        fx.apply(found, ProjectivePruning(ratio=0.5))


def test_without_a_ridge_dependent_units_are_refused() -> None:
    found = program("mlp")
    with pytest.raises(PlanError, match="7 units span only 5 dimensions"):
        fx.apply(found, ProjectivePruning(ratio=0.5, lam=0.0))


def test_selection_alone_is_the_same_for_every_share() -> None:
    found = program("mlp")
    plain = [
        fx.apply(found, ProjectivePruning(ratio=0.5, reconstruction="none", alpha=alpha))
        for alpha in (0.0, 0.5)
    ]
    first, second = (dict(each.module.state_dict()) for each in plain)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_differs_from_magnitude() -> None:
    found = program("conv_chain")
    own, other = ProjectivePruning(ratio=0.5), MagnitudePruning(ratio=0.5)
    first, second = (fx.apply(found, each).module.state_dict() for each in (own, other))
    assert any(not torch.equal(first[name], second[name]) for name in first)
