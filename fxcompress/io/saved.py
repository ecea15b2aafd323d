"""What the manifest of a program says beside its module, as a pydantic model.

Import this module only where a file is read: pydantic takes a while to import.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.edit.plan import Pattern
from fxcompress.errors import LoadError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import is_tensor, shape_of
from fxcompress.graph.parameters import find_tensor
from fxcompress.graph.through import read_shape
from fxcompress.io.schema import Text

Axis = Annotated[str, Field(pattern=r"^[0-9]{1,2}$")]
Count = Annotated[int, Field(ge=1)]


class SavedProgram(BaseModel):
    """The fields of a `Program` as `Program.save` writes them, after decoding."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True
    )

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: list[dict[Axis, Text]]
    single: bool
    seed: int
    pin: list[Text]
    probe: bool
    history: list[Text]
    parent: Text
    report: dict[str, Any]
    mixed: list[Text]
    names: dict[Text, Text]
    masks: dict[Text, tuple[Tensor, tuple[Count, Count, Annotated[int, Field(ge=0)]] | None]]
    kept: dict[Text, tuple[Tensor | None, ...]]


def check_saved(module: CapturedModule, saved: SavedProgram) -> None:
    """Check that what is said of inputs and parameters fits them.

    Raises:
        LoadError: A mask or an index belongs to another parameter, or an input to another graph.
    """
    _check_inputs(module, saved)
    for name, (mask, pattern) in saved.masks.items():
        if mask.dtype != torch.bool or tuple(mask.shape) != read_shape(module, name):
            raise LoadError(f"the mask of {name!r} is not one of it; the manifest is damaged")
        if pattern and (pattern[2] >= mask.dim() or not Pattern(*pattern).holds(mask)):
            raise LoadError(f"the mask of {name!r} has no such pattern; the manifest is damaged")
    for name, axes in saved.kept.items():
        if not _are_indices(axes, find_tensor(module, name)):
            raise LoadError(f"what was kept of {name!r} is not of it; the manifest is damaged")


def _check_inputs(module: CapturedModule, saved: SavedProgram) -> None:
    """Inputs are as the graph takes them, or none: in structure, rank and free axes."""
    given = [
        len(leaf.shape)
        for leaf in pytree.tree_leaves((saved.args, saved.kwargs))
        if isinstance(leaf, Tensor)
    ]
    nodes = module.graph.find_nodes(op="placeholder")
    taken = [len(shape_of(node)) for node in nodes if is_tensor(node)]
    axes = [max(map(int, free), default=-1) for free in saved.dynamic]
    args, names = module.graph._codegen.pytree_info.in_spec.children()  # type: ignore[attr-defined]
    good = len(saved.args) == args.num_children and saved.kwargs.keys() == set(names.context)
    good = (good and given == taken) or not (saved.args or saved.kwargs)
    good = good and len(axes) in (0, len(taken))
    if not good or any(axis >= rank for axis, rank in zip(axes, taken, strict=False)):
        raise LoadError("the example inputs are not those of the graph; the manifest is damaged")
    if module.interface is not None and given:
        module.interface.check(saved.args, saved.kwargs)


def _are_indices(axes: tuple[Tensor | None, ...], value: Tensor | None) -> bool:
    """Whether there is an index, or None, for each axis; a parameter may have gone meanwhile."""
    sizes = [None] * len(axes) if value is None else list(value.shape)
    return len(axes) == len(sizes) and all(
        index is None
        or (index.dtype == torch.int64 and index.dim() == 1 and size in (None, len(index)))
        for index, size in zip(axes, sizes, strict=True)
    )
