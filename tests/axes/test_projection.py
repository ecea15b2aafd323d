"""Laws of the folds over axis expressions: indices, masks, matrices, cells, unit rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from axis_strategies import (
    SIZES,
    cell_choices,
    expressions,
    factors,
    kept,
    selections,
    tensors_with_axes,
)
from fxcompress.axes.expressions import Concat, Expr, Factor, concat, leaves, product
from fxcompress.axes.masks import stays
from fxcompress.axes.space import Space
from fxcompress.axes.transforms import (
    Choice,
    Choices,
    coordinates,
    kept_indices,
    select,
    size_of,
    transform,
)


def one_hot(choice: Choice, units: int) -> Choice:
    """The selection as a matrix with a single 1 in each row."""
    rows = torch.nn.functional.one_hot(choice.value, units)
    return Choice(rows.to(torch.float64), choice.over)


def widths(choices: Choices) -> dict[Factor, int]:
    return {factor: choice.width for factor, choice in choices.items()}


def block(expr: Expr, choices: Choices) -> Tensor:
    """The whole matrix that an axis is multiplied with, from its definition (without cells)."""
    if isinstance(expr, Factor):
        identity = Choice(torch.eye(expr.size, dtype=torch.float64))
        return choices.get(expr, identity).value
    parts = [block(part, choices) for part in expr.parts]
    if isinstance(expr, Concat):
        stacked: Tensor = torch.block_diag(*parts)
        return stacked
    whole = torch.ones(1, 1, dtype=torch.float64)
    for part in parts:
        whole = torch.kron(whole, part)
    return whole


# ---- selections


@given(data=st.data(), size=SIZES)
def test_kept_indices_are_where_every_coordinate_is_kept(data: st.DataObject, size: int) -> None:
    expr = data.draw(expressions(Space(), size))
    choices = data.draw(selections([expr]))
    keep = torch.ones(size, dtype=torch.bool)
    for factor, at in coordinates(expr).items():
        keep &= (at < 0) | torch.isin(at, choices[factor].value)
    index = kept_indices(expr, choices)
    assert index.tolist() == keep.nonzero().flatten().tolist()
    assert len(index) == size_of(expr, widths(choices))


def test_a_choice_may_permute() -> None:
    a, b = factors(3, 2)
    choices = {a: Choice(torch.tensor([2, 0]))}
    assert kept_indices(product((a, b)), choices).tolist() == [4, 5, 0, 1]
    assert kept_indices(concat((b, a)), choices).tolist() == [0, 1, 4, 2]


@given(data=st.data())
def test_transforming_with_one_hot_rows_is_selecting(data: st.DataObject) -> None:
    tensor, axes = data.draw(tensors_with_axes())
    choices = data.draw(selections(axes))
    matrices = {factor: one_hot(choice, factor.size) for factor, choice in choices.items()}
    expected = select(tensor, axes, choices)
    torch.testing.assert_close(transform(tensor, axes, [choices] * 2), expected, rtol=0, atol=0)
    torch.testing.assert_close(transform(tensor, axes, [matrices] * 2), expected)


# ---- matrices


@given(data=st.data())
def test_transforming_is_multiplying_with_the_block_matrix(data: st.DataObject) -> None:
    tensor, axes = data.draw(tensors_with_axes())
    choices: list[Choices] = []
    for expr in axes:
        rows = {f: data.draw(st.integers(1, f.size)) for f in dict.fromkeys(leaves(expr))}
        choices.append(
            {f: Choice(torch.randn(k, f.size, dtype=torch.float64)) for f, k in rows.items()}
        )
    left, right = (block(expr, own) for expr, own in zip(axes, choices, strict=True))
    torch.testing.assert_close(transform(tensor, axes, choices), left @ tensor @ right.T)


@given(data=st.data())
def test_matrices_of_cells_are_the_blocks_of_a_block_diagonal_one(data: st.DataObject) -> None:
    heads, dims, rest = factors(3, 4, 2)
    matrices = torch.randn(3, data.draw(st.integers(1, 4)), 4, dtype=torch.float64)
    tensor = torch.randn(12, 2, dtype=torch.float64)
    axes = (product((heads, dims)), rest)
    found = transform(tensor, axes, [{dims: Choice(matrices, (heads,))}, {}])
    torch.testing.assert_close(found, torch.block_diag(*matrices) @ tensor)


# ---- cells


@given(data=st.data())
def test_each_cell_keeps_its_own_units(data: st.DataObject) -> None:
    """On one axis as select, as mask and as one-hot matrices; the outer factor may shrink too."""
    heads, dims = factors(3, 4)
    axes = (product((heads, dims)),)
    choices: dict[Factor, Choice] = {dims: data.draw(cell_choices(dims, [heads]))}
    if data.draw(st.booleans()):
        choices[heads] = Choice(data.draw(kept(3)))
    tensor = torch.arange(12.0, dtype=torch.float64)
    alive = choices[heads].value.tolist() if heads in choices else range(3)
    expected = [4 * head + dim for head in alive for dim in choices[dims].value[head].tolist()]
    assert select(tensor, axes, choices).tolist() == expected
    (mask,) = stays(axes, choices)
    assert mask.nonzero().flatten().tolist() == sorted(expected)
    matrices = {factor: one_hot(choice, factor.size) for factor, choice in choices.items()}
    assert transform(tensor, axes, [matrices]).tolist() == expected


@given(data=st.data())
def test_cells_over_two_factors(data: st.DataObject) -> None:
    """(kv r d) with units of d for every (kv, r)."""
    kv, r, dims = factors(2, 3, 4)
    choice = data.draw(cell_choices(dims, [kv, r]))
    axes = (product((kv, r, dims)),)
    expected = [4 * cell + dim for cell in range(6) for dim in choice.value[cell].tolist()]
    assert select(torch.arange(24), axes, {dims: choice}).tolist() == expected


# ---- scores
