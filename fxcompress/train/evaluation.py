"""How good a module is at a task."""

from __future__ import annotations

import torch
from torch import nn

from fxcompress.arguments import checked
from fxcompress.errors import FxCompressError
from fxcompress.graph.state import evaluating, forked
from fxcompress.task import Task
from fxcompress.train.batches import batches_of, call, size_of
from fxcompress.train.quality import metric_of
from fxcompress.train.reading import EMPTY


@checked(FxCompressError)
def evaluate(module: nn.Module, task: Task) -> float:
    """The task's metric in evaluation mode, batches weighted by their sizes.

    The module's parameters, buffers and modes, and the global random generators, are as before
    afterwards.

    Raises:
        FxCompressError: The task has no metric or no data.
    """
    if task.metric is None:
        raise FxCompressError("the task has no metric; give Task(data, metric=...)")
    total, count = 0.0, 0
    with evaluating(module) as alone, forked(module), torch.no_grad():
        for inputs, labels in batches_of(alone, task):
            size = size_of(inputs)
            output = call(alone, task, inputs)
            total += metric_of(task, output, labels, "evaluate") * size
            count += size
    if not count:
        raise FxCompressError(EMPTY)
    return total / count
