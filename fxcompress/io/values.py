"""Python values as JSON: what stands in the arguments of nodes, and what a manifest may hold.

Numbers, strings, booleans, None and lists are themselves; everything else is an object with one key
that names its kind, such as ``{"tuple": [1, 2]}`` or ``{"dtype": "float32"}``. Tensors go to a
table beside the JSON, which names them. Nothing is pickled, and decoding calls nothing but the
constructors named here; what they are given is checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.io.inputs import Drawn
from fxcompress.io.trees import dump_spec, load_spec

Json = Any

PLAIN_KINDS = frozenset({"complex", "device", "dtype", "float", "layout", "memory_format", "tuple"})
"""The kinds that arguments of operators have, beside nodes."""
ALL_KINDS = PLAIN_KINDS | {"dict", "drawn", "ellipsis", "slice", "tensor", "tree"}
"""The kinds that a manifest may hold beside the graph."""


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
        if isinstance(value, Drawn):
            parts = (list(value.shape), value.dtype, value.low, value.high, value.seed)
            return "drawn", self._all(parts, where)
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
    """Turns the JSON of an `Encoder` back into values.

    Attributes:
        tensors: What tensors are called.
        nodes: What nodes are called; anything may stand for a node.
        home: The device that stands for that of the module.
        kinds: The kinds of values that may occur.
    """

    tensors: Mapping[str, Tensor]
    nodes: Mapping[str, Any] = field(default_factory=dict)
    home: torch.device = torch.device("cpu")  # noqa: RUF009
    kinds: frozenset[str] = ALL_KINDS

    def decode(self, data: Json) -> Any:
        """The value that `data` stands for.

        Raises:
            LoadError: The data name a kind, a node or a tensor that does not exist, or hold what
                their kind does not.
        """
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, dict):
            _require(type(data) is not int or -(2**63) <= data < 2**64, data)
            return data
        _require(len(data) == 1, data)
        (kind, content), *_ = data.items()
        if kind not in self.kinds:
            raise LoadError(f"the manifest holds a value of the unknown kind {kind[:40]!r}")
        return _DECODERS[kind](self, content)

    def list_of(self, data: Json, *types: type, count: int | None = None) -> list[Any]:
        """Decoded elements, checked in number and type."""
        _require(isinstance(data, list) and count in (None, len(data)), data)
        items: list[Any] = self.decode(data)
        _require(not types or all(type(item) in types for item in items), data)
        return items

    def _named(self, table: Mapping[str, Any], name: Json, kind: str) -> Any:
        if not isinstance(name, str) or name not in table:
            raise LoadError(f"the manifest speaks of the {kind} {name!r}, which is not there")
        return table[name]


def _torch_object(name: Json, type_: type) -> Any:
    value = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(value, type_):
        raise LoadError(f"torch {torch.__version__} has no {type_.__name__} {name!r}")
    return value


def _device(decoder: Decoder, name: Json) -> torch.device:
    _require(isinstance(name, str) and _DEVICE.fullmatch(name) is not None, name)
    return decoder.home if name == "home" else torch.device(name)


def _float(_: Decoder, text: Json) -> float:
    _require(text in ("inf", "-inf", "nan"), text)
    return float(text)


def _dict(decoder: Decoder, items: Json) -> dict[Any, Any]:
    pairs = decoder.list_of(items, list)
    _require(all(len(pair) == 2 and _is_key(pair[0]) for pair in pairs), items)
    found = dict(pairs)
    _require(len(found) == len(pairs), items)
    return found


def _is_key(value: object) -> bool:
    parts = value if type(value) is tuple else (value,)
    return all(part is None or isinstance(part, str | int | float) for part in parts)


def _drawn(decoder: Decoder, data: Json) -> Tensor:
    shape, dtype, low, high, seed = decoder.list_of(data, count=5)
    sizes = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**48 for n in shape)
    kinds = (float,) if not isinstance(dtype, torch.dtype) or _is_inexact(dtype) else (int, bool)
    _require(sizes and len(shape) <= 64 and isinstance(dtype, torch.dtype), data)
    _require(type(low) is type(high) and type(low) in kinds and not low > high, data)
    _require(type(seed) is int and -(2**62) < seed < 2**62, data)
    return Drawn(tuple(shape), dtype, low, high, seed).draw()


def _is_inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _tree(decoder: Decoder, data: Json) -> Any:
    from fxcompress.io.schema import Tree  # pydantic is slow to import

    _require(isinstance(data, list) and len(data) == 2, data)
    spec, leaves = load_spec(Tree.model_validate(data[0])), decoder.list_of(data[1])
    _require(len(leaves) == spec.num_leaves, data[1])
    return pytree.tree_unflatten(leaves, spec)


def _require(held: bool, data: Json) -> None:
    if not held:
        raise LoadError(f"the manifest holds {str(data)[:80]} where something else belongs")


_DEVICE = re.compile(r"home|[a-z]+(:[0-9]{1,3})?")
_TORCH_NAMES: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}

_DECODERS: dict[str, Callable[[Decoder, Json], Any]] = {
    "complex": lambda decoder, parts: complex(*decoder.list_of(parts, int, float, count=2)),
    "device": _device,
    "dict": _dict,
    "drawn": _drawn,
    "dtype": lambda _, name: _torch_object(name, torch.dtype),
    "ellipsis": lambda *_: Ellipsis,
    "float": _float,
    "layout": lambda _, name: _torch_object(name, torch.layout),
    "memory_format": lambda _, name: _torch_object(name, torch.memory_format),
    "node": lambda decoder, name: decoder._named(decoder.nodes, name, "node"),
    "slice": lambda decoder, ends: slice(*decoder.list_of(ends, int, type(None), count=3)),
    "tensor": lambda decoder, name: decoder._named(decoder.tensors, name, "tensor"),
    "tree": _tree,
    "tuple": lambda decoder, items: tuple(decoder.list_of(items)),
}
