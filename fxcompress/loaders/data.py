"""Data for passes that look at it: a file of arrays, or what a function of the user's returns."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fxcompress.errors import LoadError, PlanError
from fxcompress.loaders.code import called
from fxcompress.task import Task, as_task

BATCH = 32
"""Samples of a file that are taken at once."""
_FORMS = "a .npy, .npz or .safetensors file, package.module:factory or file.py:factory"


def load_task(spec: str) -> Task:
    """A task from the command line.

    A ``.npy`` file holds inputs, samples first; ``.npz`` and ``.safetensors`` hold the inputs by
    the names of the model's arguments, and labels as ``labels``. A function returns batches or a
    `Task`; losses can only come from there.

    Raises:
        LoadError: There is no such file or function, or it holds no batches.
    """
    path = Path(spec)
    if path.suffix in (".npy", ".npz", ".safetensors"):
        return Task(_batches(_arrays(path), path))
    if ":" not in spec:
        raise LoadError(f"{spec!r} is no data; give {_FORMS}")
    try:
        found = as_task(called(spec))
    except PlanError as error:
        raise LoadError(f"{spec} returned no data: {error}") from error
    if found is None:
        raise LoadError(f"{spec} returned nothing; it must return batches or a fxcompress.Task")
    return found


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name; one alone has none."""
    if not path.is_file():
        raise LoadError(f"there is no file {path}; give {_FORMS}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found: Any = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": torch.from_numpy(found)}
        with found:
            return {name: torch.from_numpy(found[name]) for name in found.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        raise LoadError(
            f"{path} cannot be read as plain arrays ({type(error).__name__}: {error})"
        ) from error


def _batches(arrays: Mapping[str, Tensor], path: Path) -> list[Any]:
    sizes = {name: len(value) if value.dim() else 0 for name, value in arrays.items()}
    if not sizes or 0 in sizes.values() or len(set(sizes.values())) > 1:
        raise LoadError(
            f"{path}: all arrays need the same number of samples as their first axis, one or more; "
            f"they have {sizes}"
        )
    parts = {name: value.split(BATCH) for name, value in arrays.items()}
    if "" in parts:
        return list(parts[""])
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]
