"""Constants that a plan adds, said on the dense graph: as a sum after the layer, not in a bias or a
norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.coordinates import along, coordinates
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.axes.transforms import transform
from fxcompress.edit.proof import Proof
from fxcompress.graph.captured import CapturedModule
from fxcompress.layers.maps import linear_maps
from fxcompress.verify.masked import Addition
from fxcompress.verify.scatter import Scatter


def additions(
    old: CapturedModule,
    coupling: Coupling,
    proof: Proof,
    scatter: Scatter,
    value_of: Callable[[str], Tensor],
) -> dict[str, list[Addition]]:
    """The constants of a plan, by the names of the nodes whose values take them."""
    pairs = [
        *(_offset(old, coupling, weight, value, scatter) for weight, value in proof.constants),
        *(_shift(old, coupling, f, shift, scatter, value_of) for f, shift in proof.shifts),
    ]
    found: dict[str, list[Addition]] = {}
    for name, addition in chain.from_iterable(pairs):
        found.setdefault(name, []).append(addition)
    return found


def _offset(
    old: CapturedModule, coupling: Coupling, name: str, value: Tensor, scatter: Scatter
) -> Iterator[tuple[str, Addition]]:
    for one in (one for one in linear_maps(old, coupling) if one.weight == name):
        dim = one.output_axis
        assert dim is not None
        expr = coupling.axes[one.node][dim]
        own = {f: scatter.encoders[f] for f in leaves(expr) if f in scatter.encoders}
        scattered = transform(value, (expr,), [own])
        yield one.node, _constant(scattered.reshape(-1, *(1,) * (-1 - dim)))


def _constant(value: Tensor) -> Addition:
    return lambda node, env: value


def _shift(
    old: CapturedModule,
    coupling: Coupling,
    factor: Factor,
    shift: Tensor,
    scatter: Scatter,
    value_of: Callable[[str], Tensor],
) -> Iterator[tuple[str, Addition]]:
    """What the nodes that sum over the units make of the constant alone.

    Such a node is linear in the units, so it is run on the constant and on zeros, both as wide as
    the dense model, and the difference is what the constant adds; also at the border of an image.
    """
    for node in old.graph.nodes:
        carrier = next((o for o in node.all_input_nodes if _carries(coupling, o, factor)), None)
        if carrier is None or node.op == "output" or _holds(coupling, node, factor):
            continue
        weights = {
            operand: scatter.produced(coupling, str(operand.target), value, factor)
            for operand in node.all_input_nodes
            if operand.op == "get_attr" and (value := value_of(str(operand.target))).dim() > 0
        }
        yield node.name, _Response(carrier, coupling.axes[carrier.name], factor, shift, weights)


class _Response:
    """What a node gives for a constant on the units, less what it gives for zeros."""

    def __init__(
        self,
        carrier: fx.Node,
        axes: Axes,
        factor: Factor,
        shift: Tensor,
        weights: Mapping[fx.Node, Tensor],
    ) -> None:
        self.carrier, self.weights = carrier, weights
        self.constant = sum(
            (
                along(torch.where(index < 0, 0, shift.cpu()[index]), dim, len(axes))
                for dim, expr in enumerate(axes)
                if (index := coordinates(expr).get(factor)) is not None
            ),
            torch.zeros(()),
        )

    def __call__(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Tensor:
        zeros = torch.zeros_like(env[self.carrier])
        return self._run(node, env, zeros + self.constant.to(zeros)) - self._run(node, env, zeros)

    def _run(self, node: fx.Node, env: Mapping[fx.Node, Any], carried: Tensor) -> Tensor:
        def fetch(operand: fx.Node) -> Any:
            if operand is self.carrier:
                return carried
            value = env[operand]
            return self.weights[operand].to(value) if operand in self.weights else value

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), fetch)
        value: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return value


def _carries(coupling: Coupling, node: fx.Node, factor: Factor) -> bool:
    return node.op != "get_attr" and _holds(coupling, node, factor)


def _holds(coupling: Coupling, node: fx.Node, factor: Factor) -> bool:
    several = coupling.outputs.get(node.name, ())
    tensors = (coupling.axes.get(node.name, ()), *several)
    return any(factor in leaves(expr) for axes in tensors for expr in axes)
