"""A task's loss and metric of one batch, as the numbers they have to be."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor

from fxcompress.errors import PlanError
from fxcompress.task import Task
from fxcompress.train.reading import said


def loss_of(task: Task, output: Any, labels: Any, who: str) -> Tensor:
    """The task's loss, a tensor without axes.

    Raises:
        PlanError: There is none, it fails, or it gives no single number.
    """
    if task.loss is None:
        raise PlanError(f"{who}: the task has no loss; give Task(data, loss=...)")
    try:
        loss = task.loss(output, labels)
    except Exception as error:  # the user's own code
        raise PlanError(
            f"{who}: the task's loss fails on {_told(labels)}: {said(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise PlanError(
            f"{who} needs a loss that is one number, and the task's gives "
            f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}; "
            "take the mean over the batch"
        )
    return loss.reshape(())


def metric_of(task: Task, output: Any, labels: Any, who: str) -> float:
    """The task's metric.

    Raises:
        PlanError: There is none, it fails, or it gives no single number.
    """
    if task.metric is None:
        raise PlanError(f"{who}: the task has no metric; give Task(data, metric=...)")
    try:
        found: Any = task.metric(output, labels)
    except Exception as error:  # the user's own code
        raise PlanError(
            f"{who}: the task's metric fails on {_told(labels)}: {said(error)}"
        ) from error
    single = isinstance(found, Tensor) and found.numel() == 1 and not found.is_complex()
    if not single and not isinstance(found, Real):
        raise PlanError(
            f"{who} needs a metric that is one number, and the task's gives {type(found).__name__}"
        )
    return float(found)


def depends(loss: Tensor, who: str) -> Tensor:
    """The loss, if it can be differentiated.

    Raises:
        PlanError: It does not depend on what is trained or asked for.
    """
    if not loss.requires_grad:
        raise PlanError(
            f"{who}: the loss depends on no parameter or node that was asked for; "
            "it must be computed from the model's output, without detach() or item()"
        )
    return loss


def differentiate(loss: Tensor, who: str) -> None:
    """Add the loss's gradients to those of the parameters.

    Raises:
        PlanError: The model cannot be differentiated.
    """
    try:
        loss.backward()
    except RuntimeError as error:  # torch's word for a model that cannot be trained
        raise PlanError(
            f"{who}: the model has no gradient: {said(error)}; "
            "an operation in place may write to a value that its gradient needs"
        ) from error


def _told(labels: Any) -> str:
    return "a batch without labels" if labels is None else "a batch"
