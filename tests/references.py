"""Arrays of reference values, written from the equations by code that shares nothing with ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, Tensor]

# What the reference files promise of double precision, where a test does not say why it is more.
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


def read(shared: Path, name: str) -> Arrays:
    """All arrays of one file, by name."""
    with np.load(shared / "golden" / f"{name}.npz") as arrays:
        return {each: torch.from_numpy(np.asarray(arrays[each])) for each in arrays.files}
