"""A task's batches on the module's device, and how the module is called on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.arguments import checked
from fxcompress.errors import FxCompressError
from fxcompress.graph.state import device_of
from fxcompress.task import Task
from fxcompress.train.reading import Alike, moved, read, said, told


@checked(FxCompressError)
def call(module: nn.Module, task: Task, inputs: Any) -> Any:
    """Call the module on a batch's inputs as the task says.

    Raises:
        FxCompressError: The module does not take the inputs, or `Task.forward` fails.
    """
    try:
        return _called(module, task, inputs)
    except FxCompressError:
        raise
    except Exception as error:  # whatever the model's or the user's own code raises
        way = "the module" if task.forward is None else "Task(forward=...)"
        raise FxCompressError(
            f"{way} fails on the inputs of a batch ({told(inputs)}): {said(error)}"
        ) from error


def _called(module: nn.Module, task: Task, inputs: Any) -> Any:
    if task.forward is not None:
        return task.forward(module, inputs)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def batches_of(module: nn.Module, task: Task) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels on the module's device; labels are None where the data have none.

    Raises:
        PlanError: Reading the data fails or does not end, or a batch is unlike the first.
    """
    device = device_of(module)
    alike = Alike()
    for number, batch in read(task):
        inputs, labels = _split(moved(batch, device, number))
        alike.check(inputs, number)
        yield inputs, labels


def _split(batch: Any) -> tuple[Any, Any]:
    """Inputs and labels of a batch."""
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return inputs, batch.get("labels")
    if not isinstance(batch, tuple | list):
        return batch, None
    if len(batch) == 1:  # what a loader makes of a data set without labels
        return batch[0], None
    return (batch[0], batch[1]) if len(batch) == 2 else (batch, None)


def size_of(inputs: Any) -> int:
    """The batch's size: the first axis of its first tensor."""
    found = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim)
    first = next(found, None)
    return 1 if first is None else first.shape[0]


def head(batch: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop` of a batch's inputs or labels."""
    size = size_of(batch)
    return pytree.tree_map_only(
        Tensor, lambda v: v[start:stop] if v.ndim and v.shape[0] == size else v, batch
    )
