"""Values that hardly any argument may have, made anew each time: generators are used up."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fxcompress as fx


class Nothing:
    """An object of a class that nobody knows."""


BAD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "empty string": lambda: "",
    "word": lambda: "abc",
    "number as text": lambda: "0.5",
    "bytes": lambda: b"x",
    "-1": lambda: -1,
    "0": lambda: 0,
    "-0.5": lambda: -0.5,
    "1.5": lambda: 1.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "True": lambda: True,
    "huge": lambda: 10**30,
    "complex": lambda: 1j,
    "object": Nothing,
    "class": lambda: fx.passes.MagnitudePruning,
    "module class": lambda: nn.Linear,
    "module": lambda: nn.Linear(2, 2),
    "pass": lambda: fx.passes.MagnitudePruning(ratio=0.5),
    "function": lambda: lambda: None,
    "empty list": list,
    "list of objects": lambda: [Nothing()],
    "list of words": lambda: ["abc"],
    "list of numbers": lambda: [-1, 2],
    "list of nan": lambda: [math.nan],
    "list of a class": lambda: [fx.passes.MagnitudePruning],
    "nested": lambda: [[[]], {"abc": [None]}],
    "empty tuple": tuple,
    "set": lambda: {"abc"},
    "empty mapping": dict,
    "mapping by name": lambda: {"abc": 1},
    "mapping by number": lambda: {1: Nothing()},
    "range": lambda: range(-1, 2),
    "generator": lambda: (number for number in range(3)),
    "number as tensor": lambda: torch.tensor(0.5),
    "tensor of ints": lambda: torch.tensor([3, -1]),
    "tensor of nan": lambda: torch.full((2, 3), math.nan),
    "tensor without entries": lambda: torch.zeros(0, 3),
    "tensor of flags": lambda: torch.ones(2, 3, dtype=torch.bool),
    "tensor of complex numbers": lambda: torch.ones(2, 2, dtype=torch.complex64),
    "tensor of five axes": lambda: torch.ones(1, 2, 1, 2, 1),
    "tensor on meta": lambda: torch.zeros(2, 3, device="meta"),
    "numpy float": lambda: np.float32(-0.5),
    "numpy int": lambda: np.int64(-3),
    "numpy flag": lambda: np.bool_(True),
    "numpy array": lambda: np.array([0.25, 7.0]),
    "path": lambda: Path("/proc/none/such/file.xyz"),
    "null in text": lambda: "a\0b",
}
