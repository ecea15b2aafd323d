"""The rules of a graph between stages: what stages leave keeps them, and each is missed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.canonicalize import canonicalize
from fxcompress.capture import capture
from fxcompress.edit.rewrite import rewrite
from fxcompress.errors import FxCompressError, GraphError
from fxcompress.graph.captured import CapturedModule, aten, clone_graph
from fxcompress.graph.check import RULES, Stage, check, rules_of
from fxcompress.graph.metadata import TensorMeta
from models import MODELS, build
from programs import program
from selection import RandomSelection


class Net(nn.Module):
    """Two layers, attention, and a split."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        one, two = self.second(hidden).chunk(2, -1)
        return nn.functional.scaled_dot_product_attention(one, two, hidden[..., :3]).squeeze()


def captured() -> CapturedModule:
    return capture(Net(), (torch.randn(2, 5, 4),)).module


def canonical() -> CapturedModule:
    return canonicalize(captured())


def call(module: CapturedModule, target: object) -> fx.Node:
    found: fx.Node = next(node for node in module.graph.nodes if node.target is target)
    return found


def relu(module: CapturedModule) -> fx.Node:
    return call(module, aten.relu.default)


def weight(module: CapturedModule) -> fx.Node:
    found: fx.Node = next(n for n in module.graph.nodes if n.target == "first.weight")
    return found


def read_from_elsewhere(module: CapturedModule) -> None:
    other = clone_graph(module).graph
    other.output(relu(module))  # a user that is in no node list of this graph


def moved(module: CapturedModule) -> None:
    node = relu(module)
    next(n for n in module.graph.nodes if n.op == "placeholder").append(node)


def written_after_the_end(module: CapturedModule) -> None:
    graph = module.graph
    with graph.inserting_after(next(iter(reversed(graph.nodes)))):
        graph.call_function(aten.relu.default, (relu(module),)).meta["val"] = relu(module).meta[
            "val"
        ]


def by_method(module: CapturedModule) -> None:
    relu(module).op = "call_method"


def by_packet(module: CapturedModule) -> None:
    relu(module).target = aten.relu


def through_a_module(module: CapturedModule) -> None:
    module.add_module("act", nn.ReLU())
    node = relu(module)
    node.op, node.target = "call_module", "act"


def without_value(module: CapturedModule) -> None:
    del relu(module).meta["val"]


def not_fake(module: CapturedModule) -> None:
    relu(module).meta["val"] = TensorMeta((2, 5, 6), torch.float32)


def unnamed(module: CapturedModule) -> None:
    weight(module).target = "first.wait"


def of_another_shape(module: CapturedModule) -> None:
    module.get_submodule("first").weight = nn.Parameter(torch.zeros(7, 4))


def unpinned(module: CapturedModule) -> None:
    node = call(module, aten.scaled_dot_product_attention.default)
    node.kwargs = {**node.kwargs, "scale": None}


def unsplit(module: CapturedModule) -> None:
    node = call(module, aten.split_with_sizes.default)
    node.target, node.args = aten.chunk.default, (node.args[0], 2, -1)


def aliased(module: CapturedModule) -> None:
    relu(module).target = aten.alias.default


def dead(module: CapturedModule) -> None:
    with module.graph.inserting_after(relu(module)):
        module.graph.call_function(aten.relu.default, (relu(module),)).meta = dict(
            relu(module).meta
        )


def read_first(module: CapturedModule) -> None:
    next(iter(module.graph.nodes)).prepend(
        next(n for n in module.graph.nodes if n.target == "second.weight")
    )


FAULTS: tuple[tuple[str, Callable[[CapturedModule], None]], ...] = (
    ("users are in the graph", read_from_elsewhere),
    ("values are made before they are read", moved),
    ("one output, at the end", written_after_the_end),
    ("nodes call operators", by_method),
    ("nodes call operators", by_packet),
    ("nothing calls modules", through_a_module),
    ("every node knows its value", without_value),
    ("values are fake tensors", not_fake),
    ("parameters are as the graph says", unnamed),
    ("parameters are as the graph says", of_another_shape),
    ("one spelling", unpinned),
    ("one spelling", unsplit),
    ("one spelling", aliased),
    ("no dead nodes", dead),
    ("parameters are read where they are used", read_first),
)


@pytest.mark.parametrize(("rule", "fault"), FAULTS)
def test_a_fault_is_told_by_its_rule_and_node(
    rule: str, fault: Callable[[CapturedModule], None]
) -> None:
    module = canonical()
    check(module, "canonical")
    fault(module)
    with pytest.raises(GraphError, match=f"canonical graph breaks the rule '{rule}': node '"):
        check(module, "canonical")


def test_every_rule_has_a_fault() -> None:
    assert {rule for rule, _ in FAULTS} == set(RULES)


@pytest.mark.parametrize("stage", ["captured", "canonical", "edited"])
def test_a_stage_is_asked_for_its_own_rules_alone(stage: Stage) -> None:
    module = canonical()
    kept = {name for name, _ in rules_of(stage)}
    for rule, fault in FAULTS:
        faulty = copy.deepcopy(module)
        fault(faulty)
        refusal = pytest.raises(GraphError, match=rule) if rule in kept else nullcontext()
        with refusal:
            check(faulty, stage)


def test_a_module_may_be_of_another_type_than_it_was_captured_in() -> None:
    check(canonical().double(), "canonical")


@pytest.mark.parametrize("name", MODELS)
def test_what_every_stage_leaves_keeps_its_rules(name: str) -> None:
    model, args, kwargs = build(name, torch.float32)
    module = capture(model, args, kwargs).module
    check(module, "captured")
    check(canonicalize(module), "canonical")
    dense = program(name)
    check(dense.module, "canonical")
    plan = RandomSelection().plan(dense)
    check(rewrite(dense.module, dense.analysis.coupling, plan).module, "edited")


def test_it_is_an_error_of_ours() -> None:
    assert issubclass(GraphError, FxCompressError)
