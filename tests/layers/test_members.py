"""Laws of members: what they say about a program's weights is what the program computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import leaves
from fxcompress.layers.weights import Consumer, consumers, producers
from fxcompress.passes import FoldBatchNorm
from fxcompress.program import Program
from models import build, randomize
from programs import PRUNABLE, program

NORMED = ("conv_chain", "padded_residual", "projected_residual", "grouped_conv", "channel_shuffle")


def grouped_transposed() -> Program:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 2, 1),
    )
    return fx.compile(randomize(net).double(), (torch.randn(2, 3, 4, 4, dtype=torch.float64),))


class Recorder(Interpreter):
    """Keeps what every node gave."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        self.values[n.name] = value
        return value


def values_of(found: Program) -> dict[str, Tensor]:
    recorder = Recorder(found.module)
    with torch.no_grad():
        recorder.run(*found.args)
    return recorder.values


def groups_of(found: Program) -> list[ChannelGroup]:
    return [group for group in found.groups if group.frozen is None]


def only(found: Program, name: str) -> ChannelGroup:
    return found.group(name)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_group_has_producers_of_the_shape_they_promise(name: str) -> None:
    found = program(name)
    for group in groups_of(found):
        own = producers(found, group)
        assert own
        for producer in own:
            assert producer.rows.shape[:2] == (group.cells, group.units)
            assert producer.rows.dtype == torch.float64
            assert producer.normed.shape == producer.rows.shape
            for rows in ("raw", "effective"):
                matrix = producer.matrix(rows)
                assert torch.equal(
                    matrix[..., : producer.rows.shape[2]], producer.matrix(rows, False)
                )


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_value_of_a_consumer_carries_the_units(name: str) -> None:
    found = program(name)
    nodes = {node.name: node for node in found.module.graph.nodes}
    for group in groups_of(found):
        for consumer in consumers(found, group):
            assert nodes[consumer.value] in nodes[consumer.node].all_input_nodes
            axes = found.analysis.coupling.axes[consumer.value]
            assert any(group.factor in leaves(expr) for expr in axes)


def test_no_weight_is_forgotten() -> None:
    """Every entry of the weights that hold a group is in its members once."""
    for name in ("mlp", "conv_chain", "swiglu", "projected_residual", "prelu"):
        found = program(name)
        for group in groups_of(found):
            own = producers(found, group)
            total = sum(found.module.get_parameter(each.weight).numel() for each in own)
            assert total == sum(each.rows.numel() for each in own)


def test_a_producer_gives_its_units() -> None:
    """rows·x + offset is what the layer computes."""
    found = program("mlp")
    (producer,) = producers(found, only(found, "first"))
    x = torch.cat([found.args[0], torch.ones(2, 1, dtype=torch.float64)], 1)
    expected = values_of(found)["linear"]
    torch.testing.assert_close(x @ producer.matrix()[0].T, expected)


@pytest.mark.parametrize("name", [*NORMED, "grouped_transposed"])
def test_effective_rows_are_the_rows_once_the_norm_is_folded(name: str) -> None:
    found = program(name) if name in NORMED else grouped_transposed()
    folded = fx.apply(found, FoldBatchNorm())
    for group, after in zip(groups_of(found), groups_of(folded), strict=True):
        pairs = zip(producers(found, group), producers(folded, after), strict=True)
        for before, plain in pairs:
            assert plain.norm is None or before.norm is None
            torch.testing.assert_close(before.matrix("effective"), plain.matrix("raw"))


def test_the_columns_of_a_consumer_are_its_weight() -> None:
    """Σ over units of column·unit is the layer's output, after a flatten too."""
    found = program("flatten_head")
    group = only(found, "conv")
    (consumer,) = consumers(found, group)
    values = values_of(found)
    units = values[consumer.value].reshape(2, 6, -1)
    columns = consumer.columns[0].reshape(6, -1, 11)  # (unit, position, output), as sorted
    expected = values[consumer.node] - found.module.get_parameter("hidden.bias")
    torch.testing.assert_close(torch.einsum("bup,upo->bo", units, columns), expected)


def test_a_layer_that_is_called_often_is_a_consumer_each_time() -> None:
    found = program("reused_module")
    own = consumers(found, only(found, "up"))
    assert [each.weight for each in own] == ["down.weight"] * 3
    assert len({each.value for each in own}) == 3


def test_parts_of_a_fused_weight_are_producers_each() -> None:
    found = program("fused_attention")
    query, key = producers(found, only(found, "qkv:qk"))
    weight = found.module.get_parameter("qkv.weight").detach().reshape(3, 5, 4, 10)
    assert torch.equal(query.rows, weight[0])
    assert torch.equal(key.rows, weight[1])
    bias = found.module.get_parameter("qkv.bias").detach().reshape(3, 5, 4, 1)
    assert torch.equal(key.offset, bias[1])


def test_a_table_produces_and_a_tied_head_consumes() -> None:
    found = program("tied_language_model")
    group = next(group for group in groups_of(found) if group.name.startswith("head"))
    own = producers(found, group)
    weight = found.module.get_parameter("head.weight").detach()
    assert torch.equal(own[0].rows[0], weight.T)
    assert own[0].bias is None
    assert [each.weight for each in consumers(found, group)] == ["head.weight", "up.weight"]


def test_depthwise_layers_filter() -> None:
    found = program("grouped_conv")
    own = producers(found, only(found, "grouped.0"))
    assert [each.filters for each in own] == [False, True]
    assert own[0].rows.shape == (3, 4, 36)


def test_members_are_double_whatever_the_model_is() -> None:
    model, args, _ = build("mlp", torch.float32)
    found = fx.compile(model, args)
    group = only(found, "first")
    members: list[Consumer] = list(consumers(found, group))
    assert members[0].columns.dtype == torch.float64
