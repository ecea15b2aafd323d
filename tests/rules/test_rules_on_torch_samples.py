"""The law of every rule, over PyTorch's own samples of its operators."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.couple import couple
from fxcompress.axes.transforms import Choice, Choices
from fxcompress.graph.captured import CapturedModule
from fxcompress.rules import rule_for
from fxcompress.rules.registry import is_pointwise
from op_law import calls, check, free, traced

pytestmark = pytest.mark.slow  # importing the samples alone takes ten seconds
SAMPLES = 8
LARGEST = 30
"""Calls in the graph of a sample; composites of more show nothing new."""


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


def random_cut(module: CapturedModule, chance: random.Random) -> tuple[Any, Choices]:
    coupling = couple(module)
    chosen = [factor for factor in free(coupling) if chance.random() < 0.6]
    kept = {f: chance.sample(range(f.size), chance.randint(1, f.size)) for f in chosen}
    return coupling, {f: Choice(torch.tensor(sorted(index))) for f, index in kept.items()}


def test_the_law_holds_on_torchs_own_samples() -> None:
    """All operators in one test: the samples take longer to import than to check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        proved: set[str] = set()
        chance, failed, count = random.Random(0), list[str](), 0
        for info in op_db:
            for sample in samples(info):
                module = graph(info, sample)
                nodes = calls(module) if module is not None else []
                if module is None or not 0 < len(nodes) <= LARGEST or not any(map(is_known, nodes)):
                    continue
                try:
                    coupling, choices = random_cut(module, chance)
                    check(module, coupling, choices, values=not any(map(is_random, nodes)))
                except Exception as error:
                    failed.append(f"{info.name}: {[str(n.target) for n in nodes]}: {error}")
                count += 1
                proved |= {str(node.target) for node in nodes if is_known(node)}
    assert failed == []
    assert count > 1500
    assert len(proved) > 300


def is_known(node: torch.fx.Node) -> bool:
    return rule_for(node) is not None or is_pointwise(node)


def is_random(node: torch.fx.Node) -> bool:
    tags = node.target.tags  # type: ignore[union-attr]
    return torch.Tag.nondeterministic_seeded in tags or "empty" in str(node.target)
