"""Laws of axis expressions: refining keeps sizes and meaning; what cannot align is not guessed."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axis_strategies import expressions, is_normal, selections
from fxcompress.axes.expressions import UNIT, Concat, Expr, Factor, Product, concat, leaves, product
from fxcompress.axes.space import Space
from fxcompress.axes.transforms import kept_indices

SIZES = st.sampled_from((1, 2, 3, 4, 6, 8, 12))


def tangled(space: Space) -> set[Factor]:
    return {leaf for expr, _ in space.unalignable for leaf in space.leaves(expr)}


def named(space: Space, **sizes: int) -> tuple[Expr, ...]:
    return tuple(space.fresh(size, name) for name, size in sizes.items())


def halves(pair: tuple[Expr, Expr] | None) -> tuple[Expr, Expr]:
    assert pair is not None
    return pair


# ---- the four operations


@given(data=st.data(), size=SIZES)
def test_split_right_is_a_product_of_the_asked_size(data: st.DataObject, size: int) -> None:
    space = Space()
    expr = data.draw(expressions(space, size))
    inner_size = data.draw(st.integers(1, size))
    pair = space.split_right(expr, inner_size)
    if pair is None:
        assert not isinstance(expr, Factor) or size % inner_size
        return
    outer, inner = pair
    assert (outer.size, inner.size) == (size // inner_size, inner_size)
    whole = product(map(space.resolve, pair))
    choices = data.draw(selections([whole]))
    resolved = space.resolve(expr)
    assert torch.equal(kept_indices(resolved, choices), kept_indices(whole, choices))


@given(data=st.data(), size=SIZES)
def test_split_at_is_a_concatenation_of_the_asked_size(data: st.DataObject, size: int) -> None:
    space = Space()
    expr = data.draw(expressions(space, size))
    at = data.draw(st.integers(0, size))
    pair = space.split_at(expr, at)
    if pair is None:
        assert isinstance(expr, Product | Concat)
        return
    left, right = pair
    assert (left.size, right.size) == (at, size - at)
    whole = concat(map(space.resolve, pair))
    choices = data.draw(selections([whole]))
    resolved = space.resolve(expr)
    assert torch.equal(kept_indices(resolved, choices), kept_indices(whole, choices))


@given(data=st.data(), size=SIZES)
def test_unified_axes_keep_the_same_indices_or_are_entangled(
    data: st.DataObject, size: int
) -> None:
    space = Space()
    first, second = (data.draw(expressions(space, size)) for _ in range(2))
    space.unify(first, second)
    first, second = space.resolve(first), space.resolve(second)
    assert first.size == second.size == size
    assert is_normal(first)
    assert is_normal(second)
    frozen = tangled(space)
    drawn = data.draw(selections([first, second]))
    choices = {factor: choice for factor, choice in drawn.items() if factor not in frozen}
    assert torch.equal(kept_indices(first, choices), kept_indices(second, choices))


@given(data=st.data(), size=SIZES)
def test_unify_of_axes_that_share_factors(data: st.DataObject, size: int) -> None:
    """Also when a factor occurs on both sides, in other places."""
    space = Space()
    parts = [data.draw(expressions(space, size, depth=1)) for _ in range(2)]
    first, second = product(parts), product(reversed(parts))
    space.unify(first, second)
    space.unify(concat(parts), concat(reversed(parts)))
    first, second = space.resolve(first), space.resolve(second)
    frozen = tangled(space)
    drawn = data.draw(selections([first, second]))
    choices = {factor: choice for factor, choice in drawn.items() if factor not in frozen}
    assert torch.equal(kept_indices(first, choices), kept_indices(second, choices))


def test_unify_is_idempotent_and_only_for_equal_sizes() -> None:
    space = Space()
    a, b, c = named(space, a=4, b=4, c=6)
    space.unify(a, b)
    count = len(space.edges)
    space.unify(b, a)
    assert len(space.edges) == count
    with pytest.raises(ValueError, match="4 and 6"):
        space.unify(a, c)


def test_axes_of_size_one_carry_no_factor() -> None:
    space = Space()
    assert space.fresh(1, "one") is UNIT
    (a,) = named(space, a=4)
    assert space.split_right(a, 1) == (a, UNIT)
    assert space.split_right(a, 4) == (UNIT, a)
    assert space.split_at(a, 0) == (Concat(()), a)


def test_every_refinement_is_an_edge_with_its_cause() -> None:
    space = Space(cause="view")
    a, b = named(space, a=6, b=6)
    space.split_right(a, 2)
    space.cause = "add"
    space.unify(a, b)
    found = [(str(e.first), str(e.second), e.cause, e.kind) for e in space.edges]
    assert found == [
        ("a:6", "a.0:3", "view", "part"),
        ("a:6", "a.1:2", "view", "part"),
        ("b:6", "a.0:3", "add", "part"),
        ("b:6", "a.1:2", "add", "part"),
    ]


# ---- what does not align


def test_a_view_of_6_4_as_8_3_is_entangled() -> None:
    space = Space(cause="view")
    a, b, c, d = named(space, a=6, b=4, c=8, d=3)
    space.unify(product((a, b)), product((c, d)))
    assert tangled(space) >= set(space.leaves(product((a, b, c, d))))
    assert {cause for _, cause in space.unalignable} == {"view"}


def test_a_product_cut_beside_its_inner_boundary_is_entangled() -> None:
    space = Space()
    heads, dims, left, right = named(space, heads=3, dims=4, left=6, right=6)
    assert space.split_at(product((heads, dims)), 6) is None
    space.unify(concat((left, right)), product((heads, dims)))
    assert tangled(space) >= set(space.leaves(product((heads, dims))))


def test_a_factor_is_never_a_part_of_itself() -> None:
    space = Space()
    (a,) = named(space, a=4)
    space.unify(a, Concat((a, Concat(()))))  # not in normal form, to reach the check
    assert tangled(space) == {a}
    assert cast(Factor, a).link is None


def test_an_unsplittable_size_is_refused() -> None:
    space = Space()
    (a,) = named(space, a=6)
    assert space.split_right(a, 4) is None
    assert space.split_right(concat(named(space, b=4, c=6)), 4) is None
    assert space.split_at(a, 7) is None


# ---- the axes that models have


def test_vit_qkv_rows() -> None:
    space = Space()
    (rows,) = named(space, rows=24)
    three, h, d = named(space, three=3, h=2, d=4)
    space.unify(rows, product((three, h, d)))
    assert space.text(rows) == "(three h d)"


def test_flatten_before_a_linear() -> None:
    space = Space()
    features, c, h, w = named(space, features=24, c=2, h=3, w=4)
    space.unify(product((c, h, w)), features)
    assert space.text(features) == "(c h w)"


def test_swin_patch_merging() -> None:
    space = Space()
    reduction, c = named(space, reduction=12, c=3)
    space.unify(reduction, concat((c, c, c, c)))
    assert space.text(reduction) == "[c | c | c | c]"


def test_grouped_queries() -> None:
    space = Space()
    q, k, d, kv = named(space, q=24, k=12, d=4, kv=3)
    heads, dims = halves(space.split_right(q, 4))
    space.unify(dims, d)
    shared, r = halves(space.split_right(heads, 2))
    space.unify(k, product((kv, d)))
    space.unify(shared, kv)
    assert space.text(q) == f"(kv {space.text(r)} d)"
    assert space.text(k) == "(kv d)"


def test_rotary_halves() -> None:
    space = Space()
    head_dim, a = named(space, head_dim=8, a=4)
    left, right = halves(space.split_at(head_dim, 4))
    space.unify(left, a)
    space.unify(right, left)
    assert space.text(head_dim) == "[a | a]"


def test_densenet_concat() -> None:
    space = Space()
    channels, c0, g1, g2 = named(space, channels=10, c0=4, g1=3, g2=3)
    space.unify(concat((concat((c0, g1)), g2)), channels)
    assert space.text(channels) == "[c0 | g1 | g2]"


def test_resnext_groups() -> None:
    space = Space()
    channels, g, i = named(space, channels=12, g=4, i=3)
    space.unify(channels, product((g, i)))
    assert space.text(channels) == "(g i)"


def test_gpt_neox_fused_qkv_rows() -> None:
    space = Space()
    rows, h, q, k, v = named(space, rows=24, h=2, q=4, k=4, v=4)
    heads, each = halves(space.split_right(rows, 12))
    space.unify(heads, h)
    space.unify(each, concat((q, k, v)))
    assert space.text(rows) == "(h [q | k | v])"


@given(data=st.data(), size=SIZES)
def test_expressions_are_in_normal_form(data: st.DataObject, size: int) -> None:
    space = Space()
    expr = space.resolve(data.draw(expressions(space, size, depth=3)))
    assert is_normal(expr)
    assert all(leaf.size > 1 for leaf in leaves(expr))


def test_a_long_residual_stream_makes_no_long_chain() -> None:
    space = Space()
    stream = space.fresh(8, "stream")
    for number in range(5000):
        space.unify(space.fresh(8, f"term.{number}"), stream)
        space.unify(stream, space.fresh(8, f"sum.{number}"))
    assert space.resolve(stream) is stream
