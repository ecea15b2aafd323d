"""The law of linear maps: matrix · inputs is the operator's output less what it adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor
from fxcompress.layers.maps import LinearMap

TOLERANCE = 1e-12
"""Of float64 sums of some hundred products of numbers near 1, in another order."""


def contracted(coupling: Coupling) -> set[str]:
    """Every parameter or buffer that some operator sums over."""
    held = (own for roles in coupling.roles.values() for own in roles)
    return {name for name, _, role in held if role == "contract"}


class _Values(fx.Interpreter):
    """Keeps a copy of the value of every node, as it was when the node had run."""

    def __init__(self, module: CapturedModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value.clone() if isinstance(value, Tensor) else value
        return value


def values_of(module: CapturedModule, *inputs: Any) -> dict[str, Any]:
    """The values of all nodes by name."""
    runner = _Values(module)
    torch.manual_seed(0)
    with torch.no_grad():
        runner.run(*inputs)
    return runner.values


def check_map(module: CapturedModule, one: LinearMap, values: Mapping[str, Any]) -> None:
    """`one` holds on values of a graph's nodes."""
    product, output = product_and_output(module, one, values)
    torch.testing.assert_close(product, output, rtol=0, atol=TOLERANCE)


def product_and_output(
    module: CapturedModule, one: LinearMap, values: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Matrix times inputs, and the output less what the operator adds, both (groups, samples,
    outputs).
    """
    weight = find_tensor(module, one.weight)
    assert weight is not None
    matrix = one.matrix(values[one.contraction.weight] if one.computed else weight.detach())
    product = one.scale * one.inputs_from(*(values[name] for name in one.values)) @ matrix.mT
    node, added = values[one.node], values.get(str(one.added))
    if added is not None and one.bias is not None:
        return product, one.outputs_from(node) - added.reshape(one.groups, 1, one.outputs)
    rest = 0 if added is None else one.contraction.scales[1] * added
    return product, one.outputs_from(node - rest)
