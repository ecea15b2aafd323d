"""The norms of a graph, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx
from torch._ops import OpOverload

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.schema import arguments, signature_of


@dataclass(frozen=True)
class BatchNorm:
    """One BatchNorm. Names are None where it has no such tensor, or computes it in the graph.

    Attributes:
        node: The norm.
        value: What it normalises.
        scale: Name of its weight.
        shift: Name of its bias.
        mean: Name of the running mean.
        variance: Name of the running variance.
        eps: Added to the variance.
    """

    node: fx.Node
    value: fx.Node
    scale: str | None
    shift: str | None
    mean: str | None
    variance: str | None
    eps: float


def batch_norms(module: CapturedModule) -> Iterator[BatchNorm]:
    """The BatchNorms of a module, in the graph's order."""
    target = torch.ops.aten.batch_norm.default
    for node in module.graph.find_nodes(op="call_function", target=target):
        named = arguments(node)
        yield BatchNorm(
            node=node,
            value=named["input"],
            scale=parameter_of(named["weight"]),
            shift=parameter_of(named["bias"]),
            mean=parameter_of(named["running_mean"]),
            variance=parameter_of(named["running_var"]),
            eps=float(named["eps"]),
        )


@dataclass(frozen=True)
class InputNorm:
    """A norm by the statistics of what it is given: LayerNorm, RMSNorm or GroupNorm.

    Attributes:
        node: The norm.
        value: What it normalises.
        scale: Name of its weight; None where it has none, or computes it in the graph.
        shift: Name of its bias, likewise.
        last: Over how many last axes it runs; None where it runs over groups of channels.
        centred: Whether it takes the mean out first; an RMS norm does not.
    """

    node: fx.Node
    value: fx.Node
    scale: str | None
    shift: str | None
    last: int | None
    centred: bool


def input_norms(module: CapturedModule) -> Iterator[InputNorm]:
    """The norms of a module that keep no running statistics, in the graph's order.

    An operator is one by the arguments that its schema names: a weight to scale by, and what is
    added to the variance. One that has no bias takes no mean out.
    """
    for node in module.graph.nodes:
        if isinstance(node.target, OpOverload) and _by_input(node.target):
            named = arguments(node)
            shape = named.get("normalized_shape")
            yield InputNorm(
                node=node,
                value=named["input"],
                scale=parameter_of(named["weight"]),
                shift=parameter_of(named.get("bias")),
                last=None if shape is None else len(shape),
                centred="bias" in named,
            )


def _by_input(op: OpOverload) -> bool:
    names = set(signature_of(op).names)
    return {"input", "weight", "eps"} <= names and names.isdisjoint(("running_mean", "momentum"))
