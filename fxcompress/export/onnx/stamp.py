"""What an ONNX file says about its making: the recipe, and nothing of the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from fxcompress.export.onnx.exportable import Exportable
from fxcompress.files.write import named_by_content
from fxcompress.program import Program
from fxcompress.version import __version__

_OURS = "fxcompress."
_LOCAL = frozenset({"doc_string", "metadata_props"})
"""Fields that torch fills with stack traces, file names and its own reading of the graph."""


def stamp(draft: Path, metadata: Mapping[str, str]) -> None:
    """Rewrite a draft without anything local, with `metadata`, and with its data under a new name.

    Weights that do not fit into the file lie beside it. Their name follows from their content, so
    that an earlier file of the same name never reads them.
    """
    model = onnx.load(draft, load_external_data=False)
    _strip(model)
    onnx.helper.set_model_props(model, dict(metadata))
    beside = [part for part in draft.parent.iterdir() if part != draft]
    if beside:
        (data,) = beside
        place = named_by_content(data, f"{draft.name}.{{}}.data").name
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
    draft.write_bytes(model.SerializeToString(deterministic=True))


def _strip(message: Any) -> None:
    """Clear what is local in a protobuf message and all within."""
    for field, value in message.ListFields():
        if field.name in _LOCAL:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                _strip(child)


def is_data_of(target: Path) -> re.Pattern[str]:
    """The names of weights beside a file at `target`, as `stamp` and torch give them."""
    old = re.escape(f"{target.name}.data")
    own = re.escape(target.name) + r"\.[0-9a-f]{16}\.data"
    return re.compile(f"{own}|{old}" if f"{target.name}.data" in locations(target) else own)


def locations(path: Path) -> frozenset[str]:
    """The files that the ONNX file at `path` keeps its weights in; none if there is no such."""
    if not path.is_file():
        return frozenset()
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own errors; what is no ONNX file refers to nothing
        return frozenset()
    return locations_of(model)


def locations_of(model: onnx.ModelProto) -> frozenset[str]:
    """The files beside a model that its weights are in."""
    return frozenset(
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    )


def metadata_of(program: Exportable) -> dict[str, str]:
    """What is told of a program: version and, where it was compiled, recipe, parent and sizes.

    ``fxcompress.recipe`` is a JSON list of the passes, ``fxcompress.parent`` the digest of the
    dense weights (see `fxcompress.graph.parameters`), and ``fxcompress.params``, ``.flops``
    and so on for each quantity are JSON objects with ``before`` and ``after``.
    """
    told: dict[str, object] = {"version": __version__}
    if isinstance(program, Program):
        report = program.report
        told |= {"recipe": list(program.history), "parent": program.origin}
        told |= {name: vars(change) for name, change in report.sizes.items()}
    return {
        _OURS + key: value if isinstance(value, str) else json.dumps(value)
        for key, value in told.items()
    }


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """What `metadata_of` told, as a file has it: empty if it is not from here."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    return {key: value for key, value in found.items() if key.startswith(_OURS)}
