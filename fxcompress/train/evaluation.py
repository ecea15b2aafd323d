"""How good a module is at a task."""

from __future__ import annotations

import torch
from torch import nn

from fxcompress.errors import FxCompressError
from fxcompress.task import Task
from fxcompress.train.batches import batches_of, call, size_of


def evaluate(module: nn.Module, task: Task) -> float:
    """The task's metric in evaluation mode, batches weighted by their sizes.

    Raises:
        FxCompressError: The task has no metric or no data.
    """
    if task.metric is None:
        raise FxCompressError("the task has no metric; give Task(data, metric=...)")
    was_training, total, count = module.training, 0.0, 0
    module.eval()
    try:
        with torch.no_grad():
            for inputs, labels in batches_of(module, task):
                size = size_of(inputs)
                total += task.metric(call(module, task, inputs), labels) * size
                count += size
    finally:
        module.train(was_training)
    if not count:
        raise FxCompressError("the task's data are empty; can they be iterated only once?")
    return total / count
