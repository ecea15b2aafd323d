"""A function as a graph, and the check that a rewrite leaves its values alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from comparisons import assert_same
from fxcompress.canonicalize import Rewrite, apply
from fxcompress.capture import capture
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.metadata import shape_of
from models import rebatch


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def traced(function: Callable[..., Any] | nn.Module, *args: Tensor) -> CapturedModule:
    model = function if isinstance(function, nn.Module) else Apply(function)
    return capture(model, args).module


def targets(module: CapturedModule) -> Counter[str]:
    calls = (node for node in module.graph.nodes if node.op == "call_function")
    return Counter(getattr(node.target, "__name__", "").split(".")[0] for node in calls)


def check(rewrite: Rewrite, module: CapturedModule, *args: Tensor) -> int:
    """Apply a rewrite to a copy and compare bits, values of new nodes included; give the count."""
    before = clone_graph(module)
    count = apply(rewrite, module)
    for batch in (args[0].shape[0], args[0].shape[0] + 1):
        inputs = rebatch(args, batch)
        assert_same(module(*copy.deepcopy(inputs)), before(*copy.deepcopy(inputs)))
    Shapes(module).run(*args)
    return count


class Shapes(fx.Interpreter):
    """Compares every value with what its node says of it."""

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            value = node.meta["val"]
            assert shape_of(node) == result.shape, node
            assert value.dtype == result.dtype, node
            for dim, stride in enumerate(value.stride()):
                given = stride if isinstance(stride, int) else stride.node.hint
                assert given == result.stride()[dim] or result.shape[dim] == 1, node
        return result
