"""What a model is for: data, a loss and a metric, for passes that look at either."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Data with what to make of it.

    Attributes:
        data: Batches, iterated anew each time they are needed: ``(inputs, labels)``, or inputs
            alone where labels are not needed.
        loss: From the model's output and the labels to a scalar.
        metric: From the model's output and the labels to a number to report; larger is better.
        forward: How to call the model on a batch's inputs; by default ``model(inputs)``, or
            ``model(*inputs)`` for a tuple.
    """

    data: Iterable[Any]
    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], float] | None = None
    forward: Callable[[Any, Any], Any] | None = None
