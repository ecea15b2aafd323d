"""Dims of heads: query and key are one unit, value and output too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.passes import ProjectivePruning
from fxcompress.passes.projective.pairs import pairs_of
from fxcompress.program import Program
from models import randomize
from nets_sequence import RotaryGroupedAttention
from programs import program
from projected import DOUBLE, groups_of, parameter


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
