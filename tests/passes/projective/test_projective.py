"""Laws of Projective Pruning on whole programs: scores, redistribution, compensation, heads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.errors import PlanError
from fxcompress.layers.weights import producers
from fxcompress.passes import MagnitudePruning, Projective, ProjectivePruning
from fxcompress.passes.elimination import Vectors, eliminate
from fxcompress.passes.projective.pairs import pairs_of
from fxcompress.passes.projective.vectors import vectors_of
from fxcompress.program import Program
from models import randomize
from nets_sequence import RotaryGroupedAttention
from programs import PRUNABLE, program

DOUBLE = torch.float64
RESIDUAL = ("swiglu", "projected_residual", "padded_residual", "fused_attention")


def groups_of(found: Program) -> list[ChannelGroup]:
    return [group for group in found.groups if group.frozen is None]


def parameter(found: Program, name: str) -> Tensor:
    value: Tensor = found.module.state_dict()[name]
    return value


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    randomize(net)
    return net.double()


def weight(net: nn.Sequential, place: int, name: str = "weight") -> Tensor:
    """A parameter of a layer, to be written to."""
    return dict(net[place].named_parameters())[name].data


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


# ---- the kernel of a ReLU


def test_the_kernel_is_the_expected_product_of_activations() -> None:
    found = fx.compile(mlp(4, 6, 3), (torch.randn(2, 4, dtype=DOUBLE),))
    (vectors,) = vectors_of(found, found.groups[0], kernel="arccos")
    rows = torch.cat([parameter(found, "0.weight"), parameter(found, "0.bias")[:, None]], 1)
    h = F.relu(torch.randn(400_000, 5, dtype=DOUBLE) @ rows.T)
    # 400,000 draws: a standard error of about 2e-3 of the diagonal
    torch.testing.assert_close(vectors.gram, h.T @ h / len(h), rtol=0.05, atol=0.01)


def test_golden_kernel(shared: Path) -> None:
    arrays = dict(np.load(shared / "golden" / "arccos_gram.npz"))
    n, m = arrays["W"].shape
    net = nn.Sequential(nn.Linear(m, n), nn.ReLU(), nn.Linear(n, 2)).double()
    weight(net, 0).copy_(torch.tensor(arrays["W"]))
    weight(net, 0, "bias").copy_(torch.tensor(arrays["b"]))
    found = fx.compile(net, (torch.randn(2, m, dtype=DOUBLE),))
    (vectors,) = vectors_of(found, found.groups[0], kernel="arccos")
    np.testing.assert_allclose(vectors.gram.numpy(), arrays["K"], rtol=1e-9, atol=1e-10)


def test_the_kernel_is_for_relu_alone() -> None:
    found = program("mlp")
    method = Projective(kernel="arccos", reconstruction="linear")
    method.score(found, found.group("first"))
    with pytest.raises(PlanError, match=r"group second.*ReLU alone.*gelu"):
        method.score(found, found.group("second"))


def test_products_of_units_behind_a_relu_are_no_sums_of_them() -> None:
    """``addcmul`` begins like ``add``."""

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).relu()
            out: Tensor = self.head(torch.addcmul(h, h, h))
            return out

    found = fx.compile(Squares().double(), (torch.randn(2, 4, dtype=DOUBLE),))
    method = Projective(kernel="arccos", reconstruction="linear")
    with pytest.raises(PlanError, match=r"ReLU alone.*addcmul"):
        method.score(found, found.groups[0])


# ---- heads


class Head(nn.Module):
    """One head of attention."""

    def __init__(self, q: Tensor, k: Tensor, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        width = q.shape[1] - 1
        self.q, self.k = (nn.Linear(width, len(rows), dtype=DOUBLE) for rows in (q, k))
        self.v, self.o = (
            nn.Linear(width, 4 * heads, dtype=DOUBLE),
            nn.Linear(4 * heads, 3, dtype=DOUBLE),
        )
        with torch.no_grad():
            for layer, rows in ((self.q, q), (self.k, k)):
                layer.weight.copy_(rows[:, :-1])
                layer.bias.copy_(rows[:, -1])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def logits(found: Program, x: Tensor) -> Tensor:
    """The scores of each head, unscaled, from the weights; x ends in ones."""
    q, k = (
        torch.cat([parameter(found, f"{n}.weight"), parameter(found, f"{n}.bias")[:, None]], 1)
        for n in "qk"
    )
    heads = 3
    return torch.stack([
        (x @ a.T) @ (x @ b.T).T for a, b in zip(q.chunk(heads), k.chunk(heads), strict=True)
    ])  # fmt: skip


def test_a_dim_that_others_hold_costs_nothing() -> None:
    """In each head a dim of query and key that is the half of another's: given back exactly."""
    q, k = torch.randn(18, 9, dtype=DOUBLE), torch.randn(18, 9, dtype=DOUBLE)
    for head, (lost, twin) in enumerate(((1, 4), (3, 0), (5, 2))):
        q[6 * head + lost], k[6 * head + lost] = q[6 * head + twin] / 2, k[6 * head + twin]
    x = torch.cat([torch.randn(7, 8, dtype=DOUBLE), torch.ones(7, 1, dtype=DOUBLE)], 1)
    found = fx.compile(Head(q, k, heads=3), (x[None, :, :-1].repeat(2, 1, 1),))
    small = fx.apply(found, ProjectivePruning(ratio=1.5 / 6, lam=1e-9, dims="qk", round_to=1))
    assert parameter(small, "q.weight").shape == (15, 8)
    torch.testing.assert_close(logits(small, x), logits(found, x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(small(*found.args), found(*found.args), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["fused_attention", "interleaved_attention", "rotary_grouped_attention"]
)
def test_the_two_sides_of_a_head_are_found(name: str) -> None:
    """However the weights are fused, shared between heads or rotated."""
    found = program(name)
    kinds = {group.kind: group for group in groups_of(found)}
    for kind in ("qk", "vo"):
        pairs = pairs_of(found, kinds[kind])
        assert pairs is not None
        gram = pairs.grams()
        assert gram.shape == (kinds[kind].cells, kinds[kind].units, kinds[kind].units)
        assert bool((torch.linalg.eigvalsh(gram) > -1e-9).all())


def test_heads_that_share_a_key_add_up() -> None:
    """Rotary grouped attention: (2 key heads, 3 query heads of each, pairs of 2), from scratch."""
    found = program("rotary_grouped_attention")
    q = parameter(found, "q_proj.weight").reshape(2, 3, 2, 2, 10)  # key head, query head, copy, dim
    k = parameter(found, "k_proj.weight").reshape(2, 2, 2, 10)
    units = torch.einsum("hrcui,hcuj->hruij", q, k)  # the matrix of each pair, in each query head
    expected = torch.einsum("hruij,hrvij->uv", units, units)
    pairs = pairs_of(found, found.group("q_proj:qk"))
    assert pairs is not None
    torch.testing.assert_close(pairs.grams()[0], expected)
    v = parameter(found, "v_proj.weight").reshape(2, 4, 10)
    o = parameter(found, "o_proj.weight").reshape(10, 2, 3, 4)
    units = torch.einsum("hei,jhre->hreij", v, o)
    pairs = pairs_of(found, found.group("v_proj"))
    assert pairs is not None
    torch.testing.assert_close(pairs.grams(), torch.einsum("hreij,hrfij->hef", units, units))


class TwoBlocks(nn.Module):
    """Two blocks that rotate by the same frequencies, so that both lose the same dims."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = RotaryGroupedAttention(), RotaryGroupedAttention()
        self.between = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))  # type: ignore[no-any-return]


def test_layers_that_share_a_rotation_are_paired_each() -> None:
    net = TwoBlocks()
    randomize(net)
    net.double()
    net.second.inv_freq = net.first.inv_freq
    found = fx.compile(net, (torch.randn(2, 7, 5, dtype=DOUBLE),))
    group = next(group for group in groups_of(found) if group.kind == "qk")
    pairs = pairs_of(found, group)
    assert pairs is not None
    names = [[site.parameter.split(".")[:2] for site in pair.sites] for pair in pairs.layers]
    assert names == [[[block, "q_proj"], [block, "k_proj"]] for block in ("first", "second")]
    assert float(pairs.grams().diagonal(dim1=1, dim2=2).mean()) == pytest.approx(2)
    small = fx.apply(found, ProjectivePruning(ratio=0.5, dims="qk", round_to=1))
    assert parameter(small, "second.k_proj.weight").shape == (4, 10)


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
