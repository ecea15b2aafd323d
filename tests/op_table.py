"""The table of op cases, read: a call each, and what its rule says of the axes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxcompress.graph.captured import CapturedModule
from op_law import graph_of

RANDOM = ("bernoulli", "empty", "rand")
"""Ops whose values cannot be compared: their shapes are."""


@dataclass(frozen=True)
class Case:
    """One call, and what its rule says of the axes."""

    op: str
    arguments: str
    says: str

    def __str__(self) -> str:
        return f"{self.op}({self.arguments})"

    def graph(self) -> CapturedModule:
        args, kwargs = eval(f"_collect({self.arguments})", dict(VALUES))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return graph_of(overload(self.op), args, kwargs)


def overload(name: str) -> Callable[..., Any]:
    """The op of a name such as ``linear``, ``add.Tensor`` or ``mylib::op``."""
    namespace, _, rest = name.rpartition("::")
    packet, _, which = rest.partition(".")
    if namespace == "transformers":
        pytest.importorskip("transformers.integrations.moe")
    found = getattr(getattr(torch.ops, namespace or "aten"), packet)
    op: Callable[..., Any] = getattr(found, which or "default")
    return op


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


VALUES = {
    "_collect": lambda *args, **kwargs: (args, kwargs),
    "B": lambda *shape: torch.rand(shape) < 0.5,
    "C": lambda *shape: torch.complex(_floats(*shape), _floats(*shape)),
    "F": _floats,
    "I": lambda high, *shape: torch.randint(high, shape),
    "P": lambda *shape: torch.rand(shape, dtype=torch.float64) + 0.5,
    "torch": torch,
}


def read(line: str) -> Case:
    call, _, says = line.partition(" => ")
    found = re.fullmatch(r"([\w:.]+)\((.*)\)", call)
    assert found, f"cannot read the case {line!r}"
    return Case(found[1], found[2], says)


TABLE = (Path(__file__).parent / "op_cases.txt").read_text().splitlines()
CASES = tuple(read(line) for line in TABLE if line and not line.startswith("#"))
