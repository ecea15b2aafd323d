"""The law of every rule, over PyTorch's own samples of its operators."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch

from fxcompress.analysis.couple import couple
from fxcompress.axes.transforms import Choice, Choices
from fxcompress.graph.captured import CapturedModule
from op_law import calls, check, free
from torch_samples import graph, is_known, samples

pytestmark = pytest.mark.slow  # importing the samples alone takes ten seconds
LARGEST = 30
"""Calls in the graph of a sample; composites of more show nothing new."""


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


def is_random(node: torch.fx.Node) -> bool:
    tags = node.target.tags  # type: ignore[union-attr]
    return torch.Tag.nondeterministic_seeded in tags or "empty" in str(node.target)
