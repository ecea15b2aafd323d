"""What a program takes, as JSON; arguments and structure are those of its graph."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import fx

from fxcompress.errors import LoadError
from fxcompress.interface import (
    Interface,
    Leaf,
    SizeInput,
    SizeRange,
    TensorInput,
    ValueInput,
)
from fxcompress.io.values import Decoder, Encoder, Json

if TYPE_CHECKING:
    from fxcompress.io import schema


def dump_interface(interface: Interface | None, encoder: Encoder) -> Json:
    """The interface as JSON; None for a module that takes anything."""
    if interface is None:
        return None
    return {
        "inputs": [_dump_leaf(leaf, encoder) for leaf in interface.inputs],
        "sizes": {name: asdict(size) for name, size in interface.sizes.items()},
        "conditions": list(interface.conditions),
        "note": interface.note,
    }


def load_interface(
    data: schema.Interface | None, graph: fx.Graph, decoder: Decoder
) -> Interface | None:
    """The interface that `dump_interface` wrote.

    Raises:
        ValueError: It does not go with the graph's arguments, or a condition is none.
    """
    if data is None:
        return None
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]
    return Interface(
        arguments=tuple(info.orig_args),
        spec=info.in_spec,
        inputs=tuple(_load_leaf(leaf, decoder) for leaf in data.inputs),
        sizes={name: SizeRange(**dict(size)) for name, size in data.sizes.items()},
        conditions=tuple(data.conditions),
        note=data.note,
    )


def _dump_leaf(leaf: Leaf, encoder: Encoder) -> Json:
    fields: dict[str, Any] = {**vars(leaf)}
    if "value" in fields:
        fields["value"] = encoder.encode(fields["value"], f"input {leaf.name}")
    elif "shape" in fields:
        fields["shape"] = list(fields["shape"])
        fields["dtype"] = str(fields["dtype"]).removeprefix("torch.")
    return fields


def _load_leaf(
    data: schema.TensorInput | schema.ValueInput | schema.SizeInput, decoder: Decoder
) -> TensorInput | ValueInput | SizeInput:
    fields = dict(data)
    if "shape" in fields:
        dtype = decoder.decode({"dtype": fields["dtype"]})
        return TensorInput(fields["name"], dtype, tuple(fields["shape"]))
    if "size" in fields:
        return SizeInput(**fields)
    value = decoder.decode(fields["value"])
    if value is not None and not isinstance(value, bool | int | float | str):
        raise LoadError(f"input {fields['name']} of the program cannot be a {type(value).__name__}")
    return ValueInput(fields["name"], value)
