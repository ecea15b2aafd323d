"""Python values as JSON: what stands in the arguments of nodes, and what a manifest may hold.

Numbers, strings, booleans, None and lists are themselves; everything else is an object with one key
that names its kind, such as ``{"tuple": [1, 2]}`` or ``{"dtype": "float32"}``. Tensors go to a
table beside the JSON, which names them. Nothing is pickled, and decoding calls nothing but the
constructors named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.io.trees import dump_spec, load_spec

Json = Any


@dataclass
class Encoder:
    """Turns values into JSON and gathers the tensors among them.

    Attributes:
        home: Written as "where the module is" instead of by name, so that the module can be loaded
            elsewhere.
        tensors: The tensors met so far, by the names that stand for them.
    """

    home: torch.device | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def encode(self, value: object, where: str) -> Json:
        """`value` as JSON; `where` says in messages what it belongs to."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is list or isinstance(value, fx.immutable_collections.immutable_list):
            return self._all(value, where)
        kind, content = self._tagged(value, where)
        return {kind: content}

    def _tagged(self, value: object, where: str) -> tuple[str, Json]:
        if isinstance(value, fx.Node):
            return "node", value.name
        if isinstance(value, Tensor):
            name = f"tensor.{len(self.tensors)}"
            self.tensors[name] = value
            return "tensor", name
        if isinstance(value, torch.Size) or type(value) is tuple:
            return "tuple", self._all(value, where)
        if isinstance(value, slice):
            ends = (value.start, value.stop, value.step)
            return "slice", self._all(ends, where)
        if isinstance(value, complex):
            return "complex", self._all((value.real, value.imag), where)
        if isinstance(value, torch.device):
            return "device", "home" if value == self.home else str(value)
        for kind, type_ in _TORCH_NAMES.items():
            if isinstance(value, type_):
                return kind, str(value).removeprefix("torch.")
        if value is Ellipsis:
            return "ellipsis", None
        if type(value) is dict or isinstance(value, fx.immutable_collections.immutable_dict):
            return "dict", [self._all(item, where) for item in value.items()]
        return self._tree(value, where)

    def _all(self, values: Iterable[object], where: str) -> list[Json]:
        return [self.encode(value, where) for value in values]

    def _tree(self, value: object, where: str) -> tuple[str, Json]:
        """A dataclass or another container that torch knows how to take apart."""
        leaves, spec = pytree.tree_flatten(value)
        if spec.is_leaf():
            raise FxCompressError(
                f"{where} holds a {type(value).__name__}, which no file without code can hold; "
                "give tensors, numbers, strings, lists, tuples and dicts, or register the class "
                "with torch.export.register_dataclass"
            )
        return "tree", [dump_spec(spec, where), self._all(leaves, where)]


@dataclass(frozen=True)
class Decoder:
    """Turns the JSON of an `Encoder` back into values."""

    tensors: Mapping[str, Tensor]
    nodes: Mapping[str, fx.Node] = field(default_factory=dict)
    home: torch.device = torch.device("cpu")  # noqa: RUF009

    def decode(self, data: Json) -> Any:
        """The value that `data` stands for.

        Raises:
            LoadError: The data name a kind, a node or a tensor that does not exist.
        """
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, dict):
            return data
        if len(data) != 1:
            raise LoadError(f"the manifest holds {str(data)[:80]} where one value belongs")
        (kind, content), *_ = data.items()
        if kind not in _DECODERS:
            raise LoadError(f"the manifest holds a value of the unknown kind {kind!r}")
        return _DECODERS[kind](self, content)

    def _named(self, table: Mapping[str, Any], name: str, kind: str) -> Any:
        if name not in table:
            raise LoadError(f"the manifest speaks of the {kind} {name!r}, which is not there")
        return table[name]


def _torch_object(name: str, type_: type) -> Any:
    value = getattr(torch, name, None)
    if not isinstance(value, type_):
        raise LoadError(f"torch {torch.__version__} has no {type_.__name__} {name!r}")
    return value


_TORCH_NAMES: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}

_DECODERS: dict[str, Callable[[Decoder, Json], Any]] = {
    "complex": lambda decoder, parts: complex(*decoder.decode(parts)),
    "device": lambda decoder, name: decoder.home if name == "home" else torch.device(name),
    "dict": lambda decoder, items: {decoder.decode(k): decoder.decode(v) for k, v in items},
    "dtype": lambda _, name: _torch_object(name, torch.dtype),
    "ellipsis": lambda *_: Ellipsis,
    "float": lambda _, text: float(text),
    "layout": lambda _, name: _torch_object(name, torch.layout),
    "memory_format": lambda _, name: _torch_object(name, torch.memory_format),
    "node": lambda decoder, name: decoder._named(decoder.nodes, name, "node"),
    "slice": lambda decoder, ends: slice(*decoder.decode(ends)),
    "tensor": lambda decoder, name: decoder._named(decoder.tensors, name, "tensor"),
    "tree": lambda decoder, data: pytree.tree_unflatten(
        decoder.decode(data[1]), load_spec(data[0])
    ),
    "tuple": lambda decoder, items: tuple(decoder.decode(items)),
}
