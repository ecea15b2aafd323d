"""What a model is for: data, a loss and a metric, for passes that look at either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from fxcompress.arguments import Checked, Holds
from fxcompress.errors import PlanError

Batches = Annotated[
    Iterable[Any],
    Holds("of batches, such as a loader or [batch]", lambda value: not hasattr(value, "dtype")),
]


@dataclass(frozen=True)
class Task(Checked):
    """Data with what to make of it.

    Attributes:
        data: Batches, iterated anew each time they are needed: ``(inputs, labels)``, or inputs
            alone where labels are not needed. A batch that is a mapping holds the inputs by name,
            and labels under ``"labels"``.
        loss: From the model's output and the labels to a scalar: a mean over the batch.
        metric: From the model's output and the labels to a number to report; larger is better.
        validation: Batches that nothing is fitted to, as `data`: steps decide by the metric there.
        forward: How to call the model on a batch's inputs; by default ``model(inputs)``,
            ``model(*inputs)`` for a tuple and ``model(**inputs)`` for a mapping.
    """

    data: Batches
    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], float] | None = None
    forward: Callable[[Any, Any], Any] | None = None
    validation: Batches | None = None


def as_task(task: Task | Iterable[Any] | None) -> Task | None:
    """A task, also from batches alone.

    Raises:
        PlanError: What was given holds no batches.
    """
    if task is None or isinstance(task, Task):
        return task
    if isinstance(task, (Tensor, str, Mapping)) or not isinstance(task, Iterable):
        raise PlanError(
            f"task={type(task).__name__} holds no batches; give a loader, a list of batches "
            "(task=[inputs] for one), or Task(data, loss, metric)"
        )
    return Task(task)
