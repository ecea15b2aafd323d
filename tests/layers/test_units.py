"""Laws of the one view of units in tensors: what is read is theirs, and writing is its inverse."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from axis_strategies import factors, tensors_with_axes
from fxcompress.axes.expressions import Axes, Factor, Product, concat, leaves, product
from fxcompress.errors import PlanError
from fxcompress.layers.units import units_on


def rows_of(
    tensor: Tensor, axes: Axes, factor: Factor, over: Sequence[Factor] = (), dim: int | None = None
) -> Tensor:
    """All entries of each unit on one axis, or on all that hold it."""
    held = [d for d, expr in enumerate(axes) if factor in leaves(expr)] if dim is None else [dim]
    return torch.cat([units_on(axes, d, factor, over).read(tensor).flatten(2) for d in held], 2)


@given(data=st.data())
def test_what_is_written_is_read_again_and_nothing_else_changes(data: st.DataObject) -> None:
    tensor, axes = data.draw(tensors_with_axes())
    dims = [dim for dim, expr in enumerate(axes) if leaves(expr)]
    dim = data.draw(st.sampled_from(dims)) if dims else 0
    for factor in dict.fromkeys(leaves(axes[dim])):
        units = units_on(axes, dim, factor)
        entries = units.read(tensor)
        assert entries.shape[:3] == (1, factor.size, units.positions)
        assert torch.equal(units.write(tensor, entries), tensor)
        at = units.entries_in(tensor)
        changed = torch.zeros(tensor.numel(), dtype=torch.bool)
        changed[at.flatten()] = True
        new = units.write(tensor, torch.full_like(entries, torch.inf))
        assert torch.equal(new.isinf().flatten(), changed)
        assert torch.equal(tensor.flatten()[at], entries)


def test_a_part_of_a_fused_axis_is_read_and_written_alone() -> None:
    a, b, c = factors(3, 2, 4)
    axes = (concat((a, product((b, a)))), c)
    tensor = torch.randn(9, 4)
    second = units_on(axes, 0, a, part=1)
    assert torch.equal(second.read(tensor)[0], tensor[3:].reshape(2, 3, 4).transpose(0, 1))
    new = second.write(tensor, torch.zeros(1, 3, 8))
    assert torch.equal(new, torch.cat([tensor[:3], torch.zeros(6, 4)]))


def test_every_entry_of_a_unit_is_read() -> None:
    a, b, c = factors(3, 2, 4)
    tensor = torch.arange(24.0).reshape(6, 4)
    rows = rows_of(tensor, (product((a, b)), c), a)
    assert rows.shape == (1, 3, 8)
    assert torch.equal(rows[0], tensor.reshape(3, 8))
    assert torch.equal(rows_of(tensor, (product((a, b)), c), c)[0], tensor.T)


def test_the_entries_of_a_repeated_part_lie_side_by_side() -> None:
    a, b = factors(2, 3)
    tensor = torch.arange(12.0).reshape(1, 12)
    rows = rows_of(tensor, (Product(()), concat((a, product((b, a)), product((a, a))))), a)
    assert rows.shape == (1, 2, 1 + 3 + 2 + 2)
    first = [0, 2, 4, 6, 8, 9, 8, 10]
    assert sorted(rows[0, 0].tolist()) == sorted(first)


def test_the_entries_of_index_sets() -> None:
    heads, dims = factors(3, 4)
    tensor = torch.randn(12, 5)
    rows = rows_of(tensor, (product((heads, dims)), Product(())), dims, over=(heads,))
    assert torch.equal(rows, tensor.reshape(3, 4, 5))
    both = rows_of(tensor, (product((heads, dims)), Product(())), dims)
    assert torch.equal(both[0], tensor.reshape(3, 4, 5).transpose(0, 1).flatten(1))


@given(data=st.data())
def test_transposing_the_tensor_does_not_change_the_rows(data: st.DataObject) -> None:
    tensor, axes = data.draw(tensors_with_axes())
    for factor in dict.fromkeys(leaf for expr in axes for leaf in leaves(expr)):
        norms = rows_of(tensor, axes, factor).norm(dim=2)
        flipped = rows_of(tensor.T, axes[::-1], factor).norm(dim=2)
        torch.testing.assert_close(norms, flipped)


def test_the_entries_of_index_sets_that_another_axis_numbers() -> None:
    """A grouped convolution's inputs, and the heads of an activation."""
    groups, outs, ins, rest = factors(3, 2, 4, 5)
    tensor = torch.randn(6, 4, 5)
    rows = rows_of(tensor, (product((groups, outs)), ins, rest), ins, over=(groups,))
    expected = tensor.reshape(3, 2, 4, 5).transpose(1, 2).flatten(2)
    assert torch.equal(rows, expected)
    heads, positions, dims = factors(3, 5, 4)
    value = torch.randn(2, 3, 5, 4)
    batch = factors(2)[0]
    rows = rows_of(value, (batch, heads, positions, dims), dims, over=(heads,))
    assert torch.equal(rows.sort(-1).values, value.permute(1, 3, 0, 2).flatten(2).sort(-1).values)


@given(data=st.data())
def test_the_entries_do_not_care_where_the_cells_are_numbered(data: st.DataObject) -> None:
    """(h e d) on one axis, and the same entries with h, e and d on axes of their own."""
    h, e, d = factors(2, 3, 4)
    order = data.draw(st.permutations(range(3)))
    tensor = torch.randn(2, 3, 4, dtype=torch.float64)
    spread = tuple((h, e, d)[dim] for dim in order)
    rows = rows_of(tensor.permute(order), spread, d, over=(h, e))
    assert torch.equal(rows, rows_of(tensor.reshape(24), (product((h, e, d)),), d, over=(h, e)))


def test_the_entries_of_one_axis_only() -> None:
    (a,) = factors(3)
    tensor = torch.randn(3, 3)
    assert torch.equal(rows_of(tensor, (a, a), a, dim=1)[0], tensor.T)


def test_index_sets_that_no_axis_numbers_are_refused() -> None:
    heads, dims = factors(3, 4)
    with pytest.raises(PlanError, match="on none of the axes"):
        rows_of(torch.randn(4), (dims,), dims, over=(heads,))
