"""A task's batches on the module's device, and how the module is called on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.task import Task


def call(module: nn.Module, task: Task, inputs: Any) -> Any:
    """Call the module on a batch's inputs as the task says."""
    if task.forward is not None:
        return task.forward(module, inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def batches_of(module: nn.Module, task: Task) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels on the module's device; labels are None where the data have none."""
    state = next(module.parameters(), None)
    device = torch.device("cpu") if state is None else state.device
    for batch in task.data:
        moved = pytree.tree_map_only(Tensor, lambda value: value.to(device), batch)
        pair = isinstance(moved, tuple | list) and len(moved) == 2
        yield (moved[0], moved[1]) if pair else (moved, None)


def size_of(inputs: Any) -> int:
    """The batch's size: the first axis of its first tensor."""
    found = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim)
    first = next(found, None)
    return 1 if first is None else first.shape[0]
