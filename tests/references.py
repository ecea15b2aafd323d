"""Arrays of reference values, written from the equations by code that shares nothing with ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Arrays = dict[str, Tensor]

# What the reference files promise of double precision, where a test does not say why it is more.
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


def read(shared: Path, name: str) -> Arrays:
    """All arrays of one file, by name."""
    with np.load(shared / "golden" / f"{name}.npz") as arrays:
        return {each: torch.from_numpy(np.asarray(arrays[each])) for each in arrays.files}


class Through(nn.Module):
    """A layer whose inputs are known: identity before it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        inputs = weight.shape[1]
        self.enter = nn.Linear(inputs, inputs, bias=False)
        self.layer = nn.Linear(inputs, len(weight), bias=False)
        self.double()
        with torch.no_grad():
            self.enter.weight.copy_(torch.eye(inputs))
            self.layer.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.enter(x))  # type: ignore[no-any-return]
