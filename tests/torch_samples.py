"""The samples that torch tests its operators with, as graphs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.graph.captured import CapturedModule
from fxcompress.rules import rule_for
from fxcompress.rules.registry import is_pointwise
from op_law import traced

SAMPLES = 8


def samples(info: Any) -> Iterator[Any]:
    """The first samples of an operator in float64; none where it has none."""
    if torch.float64 in info.supported_dtypes("cpu"):
        yield from islice(info.sample_inputs("cpu", torch.float64), SAMPLES)


def graph(info: Any, sample: Any) -> CapturedModule | None:
    """The graph of a sample, or None where it has no tensors or cannot be traced."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or any(t.layout != torch.strided or t.numel() == 0 for t in tensors):
        return None

    def call(*given: Tensor) -> Any:
        rest = iter(given)
        filled = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        first, args, kwargs = pytree.tree_unflatten(filled, spec)
        return info.op(first, *args, **kwargs)

    try:
        return traced(call, tensors)
    except Exception:  # what torch cannot trace says nothing about a rule
        return None


def is_known(node: torch.fx.Node) -> bool:
    return rule_for(node) is not None or is_pointwise(node)
