"""The fields of a program as a manifest holds them, and back.

`packed` and `unpacked` are the two halves of one table: what one writes the other reads, and
`SavedProgram` checks in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from fxcompress.edit.masks import Zeros, current_masks
from fxcompress.edit.plan import Pattern
from fxcompress.io.inputs import without_values
from fxcompress.report import Report

if TYPE_CHECKING:
    from fxcompress.io.saved import SavedProgram

PLAIN = ("single", "seed", "probe", "parent")
"""Fields that are numbers and words, as they are."""


def packed(fields: Mapping[str, Any], inputs: bool) -> dict[str, Any]:
    """What a file says of a program beside its module.

    Args:
        fields: Those of the program, by name.
        inputs: Write the values of the example inputs, and not only what they are like.
    """
    examples = (tuple(fields["args"]), dict(fields["kwargs"]))
    args, kwargs = examples if inputs else without_values(examples, fields["seed"])
    masks = current_masks(fields["module"], fields["masks"])
    return {
        **{name: fields[name] for name in PLAIN},
        "args": args,
        "kwargs": kwargs,
        "dynamic": [{str(dim): name for dim, name in axes.items()} for axes in fields["dynamic"]],
        "pin": list(fields["pin"]),
        "history": list(fields["history"]),
        "report": fields["report"].to_dict(),
        "mixed": sorted(fields["mixed"]),
        "names": dict(fields["names"]),
        "masks": {
            name: (zeros.mask, zeros.pattern and astuple(zeros.pattern))
            for name, zeros in masks.items()
        },
        "kept": {name: tuple(axes) for name, axes in fields["kept"].items()},
    }


def unpacked(saved: SavedProgram) -> dict[str, Any]:
    """The fields of the program that a manifest describes, without its module."""
    return {
        **{name: getattr(saved, name) for name in PLAIN},
        "args": saved.args,
        "kwargs": saved.kwargs,
        "dynamic": tuple({int(dim): name for dim, name in axes.items()} for axes in saved.dynamic),
        "pin": tuple(saved.pin),
        "history": tuple(saved.history),
        "report": Report.from_dict(saved.report),
        "mixed": frozenset(saved.mixed),
        "names": saved.names,
        "masks": {
            name: Zeros(mask, pattern and Pattern(*pattern))
            for name, (mask, pattern) in saved.masks.items()
        },
        "kept": saved.kept,
    }
