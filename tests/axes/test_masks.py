"""Laws of the masks: where places stay, cutting by masks, and putting back."""

from __future__ import annotations

from functools import reduce
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from axis_strategies import cell_choices, factors, selections, tensors_with_axes
from fxcompress.axes.expressions import Axes
from fxcompress.axes.masks import clear, kept_shape, put, stays, take
from fxcompress.axes.transforms import Choices, kept_indices


def together(axes: Axes, choices: Choices, shape: tuple[int, ...]) -> Tensor:
    return reduce(torch.logical_and, stays(axes, choices), torch.tensor(True)).expand(shape)


@given(data=st.data())
def test_masks_hold_where_the_kept_indices_point(data: st.DataObject) -> None:
    tensor, axes = data.draw(tensors_with_axes())
    choices = data.draw(selections(axes))
    expected = torch.zeros(tensor.shape, dtype=torch.bool)
    expected[torch.meshgrid([kept_indices(e, choices) for e in axes], indexing="ij")] = True
    assert torch.equal(expected, together(axes, choices, tensor.shape))


@given(data=st.data())
def test_masks_are_lines(data: st.DataObject) -> None:
    tensor, axes = data.draw(tensors_with_axes())
    masks = stays(axes, data.draw(selections(axes)))
    assert all(mask.numel() == max(mask.shape) for mask in masks)
    assert len(masks) <= tensor.dim()


@given(data=st.data())
def test_cells_numbered_by_another_axis(data: st.DataObject) -> None:
    heads, positions, dims = factors(3, 2, 4)
    choice = data.draw(cell_choices(dims, [heads]))
    (mask,) = stays((heads, positions, dims), {dims: choice})
    for head in range(3):
        expected = torch.isin(torch.arange(4), choice.value[head])
        assert torch.equal(mask.expand(3, 2, 4)[head], expected.expand(2, 4))


@given(data=st.data())
def test_taking_is_indexing_with_the_whole_mask(data: st.DataObject) -> None:
    tensor, axes, choices = _case(data)
    masks, shape = stays(axes, choices), kept_shape(axes, choices, tensor.shape)
    small = take(tensor, masks, shape)
    assert list(small.shape) == shape
    assert torch.equal(small.flatten(), tensor[together(axes, choices, tensor.shape)])


@given(data=st.data())
def test_putting_back_leaves_what_was_taken_among_zeros(data: st.DataObject) -> None:
    tensor, axes, choices = _case(data)
    masks, shape = stays(axes, choices), kept_shape(axes, choices, tensor.shape)
    whole = put(take(tensor, masks, shape), masks, tensor.shape)
    assert torch.equal(whole, tensor * together(axes, choices, tensor.shape))


DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16),
    *(torch.int64, torch.int8, torch.bool),
    torch.complex64,
    torch.complex128,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [True, False])
def test_clearing_is_filling_with_zeros(dtype: torch.dtype, in_place: bool) -> None:
    masks = [torch.tensor([True, False, True])[:, None], torch.rand(3, 4) > 0.5]
    value = torch.randn(4, 3).mul(10).to(dtype).T
    if dtype.is_floating_point:
        value[0, 0], value[1, 1], value[2, 2] = float("inf"), float("nan"), -0.0
    before = value.clone()
    expected = value.masked_fill(~(masks[0] & masks[1]), 0)
    found = clear(value, masks, in_place=in_place)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert (found is value) is in_place
    torch.testing.assert_close(value, found if in_place else before, rtol=0, atol=0, equal_nan=True)


def _case(data: st.DataObject) -> tuple[Tensor, Axes, Choices]:
    """Two axes and a selection; or cells of one axis that choose among the units of another."""
    if data.draw(st.booleans()):
        tensor, axes = data.draw(tensors_with_axes())
        return tensor, axes, data.draw(selections(axes))
    axes = factors(*data.draw(st.tuples(*[st.integers(2, 4)] * 3)))
    tensor = torch.arange(1.0, 1 + prod(axis.size for axis in axes))
    tensor = tensor.reshape([axis.size for axis in axes])
    return tensor, axes, {axes[2]: data.draw(cell_choices(axes[2], [axes[0]]))}
