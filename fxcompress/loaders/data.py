"""Data for passes that look at it: a file of arrays, or what a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fxcompress.arguments import Holds, checked
from fxcompress.errors import LoadError, PlanError
from fxcompress.loaders.code import called
from fxcompress.program import Program
from fxcompress.task import Task, as_task

FileName = Annotated[str, Holds("that names data", lambda text: text and "\0" not in text)]
BATCH = 32
"""Samples of a file that are taken at once."""
LABELS = "labels"
_FORMS = "a .npy, .npz or .safetensors file, package.module:factory or file.py:factory"


@checked(LoadError)
def load_task(spec: FileName, program: Program) -> Task:
    """A task from the command line.

    A ``.npy`` file holds inputs, samples first; ``.npz`` and ``.safetensors`` hold the inputs by
    the names of the model's arguments, and labels as ``labels``. A function returns batches or a
    `Task`; losses can only come from there.

    Args:
        spec: A file, or a function.
        program: What will look at the data.

    Raises:
        LoadError: There is no such file or function, it holds no batches, or arrays that the
            program does not take.
    """
    path = Path(spec)
    if path.suffix in (".npy", ".npz", ".safetensors"):
        return Task(_batches(_named(_arrays(path), program, path), path))
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
        with path.open("rb") as file:  # np.load leaves what it opens open where it fails
            found: Any = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"": torch.from_numpy(found)}
            with found:
                return {name: torch.from_numpy(found[name]) for name in found.files}
    except Exception as error:  # a broken archive fails as zip, as header, as array
        raise LoadError(
            f"{path} cannot be read as plain arrays ({type(error).__name__}: {error})"
        ) from error


def _named(arrays: dict[str, Tensor], program: Program, path: Path) -> dict[str, Tensor]:
    """The arrays by the names of the program's arguments, as the program takes them."""
    names, examples = _arguments(program, path)
    inputs = [name for name in arrays if name != LABELS]
    if len(names) == len(inputs) == 1:  # it can only be this one
        arrays = {names[0] if name != LABELS else LABELS: v for name, v in arrays.items()}
    elif set(inputs) != set(names):
        raise LoadError(
            f"{path} holds {', '.join(map(repr, inputs)) or 'no inputs'}; the model takes "
            f"{', '.join(map(repr, names))}, and labels are called {LABELS!r}"
        )
    free = dict(zip(names, program.dynamic, strict=True))
    fitted = {
        name: _fitted(arrays[name], example, free[name], f"{path}: {name}")
        for name, example in zip(names, examples, strict=True)
    }
    return fitted | {name: value for name, value in arrays.items() if name == LABELS}


def _arguments(program: Program, path: Path) -> tuple[list[str], list[Tensor]]:
    info = program.module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    values = [*program.args, *program.kwargs.values()]
    if not all(isinstance(value, Tensor) for value in values):
        raise LoadError(
            f"{path}: the model takes more than plain tensors, which a file cannot hold; give a "
            "function that returns batches"
        )
    return list(info.orig_args), values


def _fitted(value: Tensor, example: Tensor, free: Mapping[int, Any], what: str) -> Tensor:
    """An array in the type of an example, if it could be one of its kind."""
    sizes = zip(value.shape, example.shape, strict=False)
    wrong = any(a != b for axis, (a, b) in enumerate(sizes) if axis and axis not in free)
    if value.dim() != example.dim() or wrong:
        raise LoadError(
            f"{what} has shape {tuple(value.shape)}; the model takes {tuple(example.shape)}, with "
            "samples on the first axis"
        )
    if value.is_floating_point() != example.is_floating_point():
        raise LoadError(
            f"{what} is {value.dtype} and the model takes {example.dtype}; convert it as for "
            "training"
        )
    return value.to(example.dtype)


def _batches(arrays: Mapping[str, Tensor], path: Path) -> list[dict[str, Tensor]]:
    sizes = {name: len(value) if value.dim() else 0 for name, value in arrays.items()}
    if 0 in sizes.values() or len(set(sizes.values())) > 1:
        raise LoadError(
            f"{path}: all arrays need the same number of samples as their first axis, one or more; "
            f"they have {sizes}"
        )
    parts = {name: value.split(BATCH) for name, value in arrays.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]
