"""The BatchNorms of a graph, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.schema import arguments


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
