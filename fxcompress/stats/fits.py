"""Whether a batch is what a program takes, found before the program runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.errors import PlanError
from fxcompress.program import Program


def check_fits(program: Program, inputs: Any, who: str, number: int) -> None:
    """Refuse inputs of another structure, type or size than those the program was captured with.

    Axes that are free may have any size, and so may the first; what `Task.forward` makes of the
    inputs is its own matter.

    Raises:
        PlanError: With the number of the batch and what is wrong in it.
    """
    task = program.task
    if task is None or task.forward is not None:
        return
    known, given = _tensors(program, program.args, program.kwargs), _given(program, inputs)
    if more := [name for name in given if name not in known]:
        raise PlanError(
            f"{who}: batch {number} of the task's data has {', '.join(more)} beside what the "
            f"program takes: {', '.join(known)}"
        )
    free = dict(zip(known, program.dynamic, strict=True))
    for name, example in known.items():
        value = given.get(name)
        if value is None:
            raise PlanError(
                f"{who}: batch {number} of the task's data has no tensor for {name}; it has "
                f"{', '.join(given) or 'none'}, and the program takes {', '.join(known)}"
            )
        if _differs(value, example, free[name]):
            raise PlanError(
                f"{who}: batch {number} of the task's data has {name} of shape "
                f"{tuple(value.shape)}, {value.dtype}; the program was captured with "
                f"{tuple(example.shape)}, {example.dtype}"
            )


def _differs(value: Tensor, example: Tensor, free: Mapping[int, str]) -> bool:
    if value.dtype != example.dtype or value.dim() != example.dim():
        return True
    sizes = zip(value.shape, example.shape, strict=True)
    return any(axis and axis not in free and a != b for axis, (a, b) in enumerate(sizes))


def _given(program: Program, inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        return _tensors(program, (), inputs)
    return _tensors(program, inputs if isinstance(inputs, tuple) else (inputs,), {})


def _tensors(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[Any, Any]
) -> dict[str, Tensor]:
    """The tensors among arguments by the names of the arguments and their places in them."""
    names = program.module.graph._codegen.pytree_info.orig_args  # type: ignore[attr-defined]
    positional = [f"argument {place}" for place in range(len(names), len(args))]
    both = [*zip([*names, *positional], args, strict=False), *kwargs.items()]
    found = {}
    for name, value in both:
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, Tensor):
                found[f"{name}{pytree.keystr(path)}"] = leaf
    return found
