"""A program's data, checked: what is there, that it can be read again, and read to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from fxcompress.arguments import checked
from fxcompress.errors import PlanError
from fxcompress.program import Program
from fxcompress.stats.batching import batching_of, cut
from fxcompress.stats.fits import check_fits
from fxcompress.task import Task
from fxcompress.train.batches import batches_of, head, size_of
from fxcompress.train.reading import EMPTY


@checked(PlanError)
def require_data(program: Program, who: str, labels: bool = False) -> Task:
    """The program's task, or an error that says what to pass.

    Args:
        program: Whose task.
        who: The method that needs the data, for the message.
        labels: Whether it needs a loss too (and labels in every batch).

    Raises:
        PlanError: There are no data, they can be read only once, or there is no loss.
    """
    task = program.task
    if task is None:
        wanted = "Task(batches of (inputs, labels), loss)" if labels else "batches of inputs"
        raise PlanError(f"{who} looks at data and there are none; pass task={wanted} to compile")
    if isinstance(task.data, Iterator):
        raise PlanError(
            f"{who} goes through the data more than once, and a {type(task.data).__name__} can be "
            "gone through only once; pass a loader, or list(data)"
        )
    if labels and task.loss is None:
        raise PlanError(f"{who} needs a loss; pass task=Task(data, loss=...) to compile")
    return task


def samples_of(
    program: Program, who: str, labels: bool = False, limit: int | None = None
) -> Iterator[tuple[Any, Any, int]]:
    """Inputs, labels and size of every batch, on the device; at most `limit` samples in all.

    Inputs without an axis of samples (a graph, one image) are one sample. A batch of a program that
    runs batches of one size only is never cut, and may end beyond `limit`.

    Raises:
        PlanError: As `require_data`; or there is no batch, labels are missing in one, or the data
            end before their own length.
    """
    task = require_data(program, who, labels)
    seen = number = 0
    for number, (inputs, targets) in enumerate(batches_of(program.module, task), start=1):
        if labels and targets is None:
            raise PlanError(
                f"{who} needs labels, and batch {number} of the data has none; "
                "give batches of (inputs, labels)"
            )
        check_fits(program, inputs, who, number)
        batching = batching_of(program, inputs)
        size = size_of(inputs) if batching.independent else 1
        if limit is not None and seen + size > limit and batching.cuttable:
            size = limit - seen
            inputs, targets = cut(program, inputs, 0, size), head(targets, 0, size)
        yield inputs, targets, size
        seen += size
        if limit is not None and seen >= limit:
            return
    if not seen:
        raise PlanError(f"{who} looks at data: {EMPTY}")
    if isinstance(task.data, Sized) and number < len(task.data):
        raise PlanError(
            f"the data of {who} end after {number} of {len(task.data)} batches; "
            "mend the loader, or give it the length it has"
        )


def parts_of(
    program: Program, who: str, inputs: Any, labels: Any, size: int, step: int
) -> Iterator[tuple[Any, Any]]:
    """A batch of `size` samples, as `samples_of` gives it, in parts of at most `step`.

    Raises:
        PlanError: The program runs batches of one size only.
    """
    if size <= step:
        yield inputs, labels
        return
    if not batching_of(program, inputs).cuttable:
        raise PlanError(
            f"{who} runs samples one by one, and the program was captured for a batch of {size} "
            "only; compile it with dynamic='batch', or give batches of one sample"
        )
    for start in range(0, size, step):
        yield cut(program, inputs, start, start + step), head(labels, start, start + step)
