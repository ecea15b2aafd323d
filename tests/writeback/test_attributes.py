"""Sizes that the user's classes keep in attributes follow, or an error names the line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.errors import WriteBackError
from models import build, normal
from nets_attributes import Attention, Convolutional, Padded, Transformer, Unscaled
from selection import RandomSelection
from written_back import Keep, assert_written_back, compiled, double


def test_attributes_of_the_users_classes_follow() -> None:
    model = double(Transformer())
    kept = {3: 2, 4: 3, 12: 8}  # heads and dims of the first block, the residual stream
    program = compiled(model, normal(2, 7, 5), passes=[Keep(lambda group: kept.get(group.units))])
    result = assert_written_back(model, program)
    first = result.get_submodule("blocks.0")
    assert isinstance(first, Attention)
    assert (first.heads, first.dims, first.scale) == (2, 3, 0.5)
    assert first.sizes == [6, 6, 6]
    assert (first.proj.out_features, first.proj.in_features) == (8, 6)
    assert model.get_submodule("blocks.0").sizes == [12, 12, 12]


def test_a_scale_taken_from_a_width_moves_into_the_queries() -> None:
    model = double(Transformer(Unscaled))
    kept = {4: 3}
    program = compiled(model, normal(2, 7, 5), passes=[Keep(lambda group: kept.get(group.units))])
    result = assert_written_back(model, program)
    weights = (module.get_parameter("blocks.0.qkv.weight") for module in (result, program.module))
    ratio = torch.div(*weights)
    torch.testing.assert_close(ratio[:9], torch.full_like(ratio[:9], (3 / 4) ** 0.5))
    assert torch.equal(ratio[9:], torch.ones_like(ratio[9:]))


def test_dims_that_one_attribute_cannot_hold_are_refused() -> None:
    model = double(Transformer())
    kept = iter([2])  # of the queries and keys alone
    program = compiled(
        model,
        normal(2, 7, 5),
        passes=[Keep(lambda group: next(kept, None) if group.units == 4 else None)],
    )
    with pytest.raises(
        WriteBackError, match=r"(?s)nets_attributes.py:\d+.*'blocks.0' \(Attention\)"
    ):
        program.write_back(model)


def test_pads_follow_where_both_sides_agree() -> None:
    model = double(Padded())
    program = compiled(model, normal(2, 3, 8, 6), passes=[RandomSelection()])
    result = assert_written_back(model, program)
    assert [block.pad for block in result.get_submodule("blocks").children()] == [0, 2, 0]


def test_pads_of_two_sizes_are_refused_by_name() -> None:
    model = double(Padded())
    sizes = iter([3, 2])
    program = compiled(
        model,
        normal(2, 3, 8, 6),
        passes=[Keep(lambda group: next(sizes) if group.units == 4 else None)],
    )
    with pytest.raises(WriteBackError, match=r"(?s)blocks.1.*'pad' was 4.*2 \(.*3 \("):
        program.write_back(model)


def test_layers_say_their_new_sizes() -> None:
    model, args, kwargs = build("grouped_conv")
    program = fx.compile(model, args, kwargs, passes=[RandomSelection(seed=1)])
    result = assert_written_back(model, program)
    for layer in result.modules():
        if isinstance(layer, nn.Conv2d):
            outputs, inputs, *_ = layer.weight.shape
            assert (layer.out_channels, layer.in_channels) == (outputs, inputs * layer.groups)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.running_mean)  # type: ignore[arg-type]
    depthwise = result.get_submodule("depthwise.0")
    assert isinstance(depthwise, nn.Conv2d)
    assert depthwise.groups == depthwise.out_channels < 12


def test_convolutions_follow_under_any_name_with_any_weight() -> None:
    model = double(Convolutional())
    halved = Keep(lambda group: max(1, group.units // 2))
    program = compiled(model, normal(2, 3, 6, 6), passes=[halved])
    result = assert_written_back(model, program)
    assert isinstance(result.get_submodule("grouped"), nn.Conv2d)
    position = result.get_submodule("position")
    assert position is result.get_submodule("blocks.0.position")
    assert isinstance(position, nn.Conv2d)
    assert position.groups == position.out_channels < 8


def test_the_line_that_no_attribute_mends_is_named() -> None:
    """The attributes can hold the sizes up to the line that takes a width from the input."""

    class Residual(Attention):
        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            q, k, v = (
                part.view(b, n, self.heads, self.dims).transpose(1, 2)
                for part in self.qkv(x).split(self.sizes, -1)
            )
            weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]

    model = double(Transformer(Residual))
    kept = {3: 2, 4: 3}
    program = compiled(model, normal(2, 7, 5), passes=[Keep(lambda group: kept.get(group.units))])
    with pytest.raises(WriteBackError, match=r"reshape\(b, n, c\)"):
        program.write_back(model)
