"""Batches read from a task's data, with an error that names the batch where reading them fails.

What loaders do wrong is told here once: they raise midway, never end, are longer than they say,
give batches of one kind and then of another, or inputs that are no numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.errors import PlanError
from fxcompress.task import Task

MOST = 10_000
"""Batches that are read from data without a length; more are taken for data that never end."""


EMPTY = "the task's data are empty, or can be gone through only once; give a loader or a list"


def read(task: Task) -> Iterator[tuple[int, Any]]:
    """The batches of a task's data, numbered from 1.

    Raises:
        PlanError: The data raise an error, or do not end.
    """
    most = len(task.data) if isinstance(task.data, Sized) else MOST
    batches, number = _started(task), 0
    while True:
        number += 1
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # the user's own code
            raise PlanError(f"batch {number} of the task's data failed: {said(error)}") from error
        if number > most:
            raise PlanError(_endless(task, most))
        yield number, batch


def _started(task: Task) -> Iterator[Any]:
    try:
        return iter(task.data)
    except Exception as error:  # the user's own code
        raise PlanError(f"the task's data cannot be gone through: {said(error)}") from error


def _endless(task: Task, most: int) -> str:
    if isinstance(task.data, Sized):
        return (
            f"the task's data have a length of {most} batches and go on after; "
            "mend the loader, or give it the length it has"
        )
    return (
        f"the task's data have no length and do not end after {most} batches; give samples=, or "
        "data with a length: list(itertools.islice(data, n))"
    )


def moved(batch: Any, device: torch.device, number: int) -> Any:
    """A batch with its tensors on a device, a mapping as a plain dictionary.

    Raises:
        PlanError: A tensor cannot go there.
    """
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    try:
        return pytree.tree_map_only(Tensor, lambda value: value.to(device), plain)
    except (NotImplementedError, RuntimeError) as error:
        raise PlanError(
            f"batch {number} of the task's data cannot go to {device}: {said(error)}"
        ) from error


class Alike:
    """Whether the inputs of batches are of the kind that those of the first batch are."""

    def __init__(self) -> None:
        self._first: tuple[pytree.TreeSpec, list[str]] | None = None

    def check(self, inputs: Any, number: int) -> None:
        """Refuse inputs of another structure, of other types or ranks, or with NaN in them.

        Raises:
            PlanError: With the number of the batch.
        """
        leaves, spec = pytree.tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for value in tensors:
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                raise PlanError(
                    f"the inputs of batch {number} of the task's data hold NaN; mend the data"
                )
        kinds = [f"{value.dtype} with {value.dim()} axes" for value in tensors]
        first = self._first or (spec, kinds)
        if first != (spec, kinds):
            raise PlanError(
                f"batch {number} of the task's data has inputs of another kind than batch 1: "
                f"{told(inputs)}, not {', '.join(first[1])}; mend the loader"
            )
        self._first = first


def told(inputs: Any) -> str:
    """The tensors of a batch's inputs, in words."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    words = [f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}" for each in tensors]
    return ", ".join(words) or f"no tensor, but {type(inputs).__name__}"


def said(error: Exception) -> str:
    """An error's kind and its first line."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
