"""What a manifest may say: its whole structure as pydantic models, checked before it is used.

Import this module only where a file is read: pydantic takes a while to import.
"""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypeAliasType

from fxcompress.errors import LoadError

VERSION = 2
"""The version of the format that is written, and the only one that is read."""

_MAX_NODES = 500_000
_MAX_TEXT = 20_000
_MAX_SIZE = 2**48
_MAX_RANK = 64
_DTYPES = frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
# What may stand between the quotes of getattr(module, "…"), which torch.fx writes for such parts.
_PART = re.compile(r"[\w+-]+")


def _identifier(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name[:80]!r} is no name")
    return name


def _path(name: str) -> str:
    parts = name.split(".")
    if not all(_PART.fullmatch(part) and not keyword.iskeyword(part) for part in parts):
        raise ValueError(f"{name[:80]!r} is no dotted name")
    return name


def _dtype(name: str) -> str:
    if name not in _DTYPES:
        raise ValueError(f"{name[:80]!r} is no element type")
    return name


Text = Annotated[str, Field(max_length=_MAX_TEXT)]
Identifier = Annotated[str, Field(max_length=1000), AfterValidator(_identifier)]
Path = Annotated[str, Field(max_length=2000), AfterValidator(_path)]
Size = Annotated[int, Field(ge=0, le=_MAX_SIZE)]
Sizes = Annotated[list[Size], Field(max_length=_MAX_RANK)]
Dtype = Annotated[str, AfterValidator(_dtype)]
Encoded = Any
"""What an `Encoder` wrote; a `Decoder` checks it."""


class Strict(BaseModel):
    """Nothing beside the fields, no conversions, no changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Stored(Strict):
    """A tensor in the file: its elements in memory order of `stride`, and their digest."""

    shape: Sizes
    dtype: Dtype
    stride: Sizes
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @model_validator(mode="after")
    def _of_one_rank(self) -> Self:
        if len(self.shape) != len(self.stride):
            raise ValueError(f"shape {self.shape} and stride {self.stride} differ in rank")
        return self


class Owned(Stored):
    """A parameter or buffer under its first name."""

    name: Path
    parameter: bool
    requires_grad: bool
    persistent: bool


class Tied(Strict):
    """Another name of a parameter or buffer that came before."""

    name: Path
    alias_of: Path
    persistent: bool


class Tree(Strict):
    """The structure of inputs or outputs, as `fxcompress.io.trees` writes it."""

    type: Text | None
    context: Encoded
    children_spec: list[Tree]
    module: Text | None = None
    fields: list[Text] | None = None


class TensorValue(Strict):
    """What is known of a node's tensor."""

    shape: Sizes
    dtype: Dtype
    dynamic: list[Annotated[int, Field(ge=0, lt=_MAX_RANK)]]


Value = TypeAliasType("Value", "TensorValue | list[Value] | bool | int | float | None")


class Meta(Strict):
    """What is known of a node: its value, where it came from, and what it does in which mode."""

    val: Value = None
    stack: list[tuple[Text, Text, Text]] | None = None
    fixed_mode: bool = False
    counter: Path | None = None
    cumulative: bool = False
    in_training: bool = False


class Node(Strict):
    """A node of the graph."""

    op: Literal["placeholder", "get_attr", "call_function", "call_module", "output"]
    name: Identifier
    target: Text
    args: Encoded
    kwargs: Encoded
    meta: Meta


class Graph(Strict):
    """The nodes in order, and the calling convention."""

    inputs: list[Identifier]
    in_spec: Tree
    out_spec: Tree | None
    nodes: Annotated[list[Node], Field(max_length=_MAX_NODES)]

    @model_validator(mode="after")
    def _ends_once(self) -> Self:
        _refuse_twins([node.name for node in self.nodes], "node")
        _refuse_twins(self.inputs, "input")
        if [node.name for node in self.nodes if node.op == "output"] != [self.nodes[-1].name]:
            raise ValueError("the graph needs one output, at its end")
        return self


class TensorInput(Strict):
    """What a tensor among the inputs has to be; in its shape a name stands for a free axis."""

    name: Text
    dtype: Dtype
    shape: Annotated[list[Size | Identifier], Field(max_length=_MAX_RANK)]


class ValueInput(Strict):
    """The value that an input has to have."""

    name: Text
    value: Encoded


class SizeInput(Strict):
    """A whole number among the inputs that is free."""

    name: Text
    size: Identifier


class SizeRange(Strict):
    """The sizes that a free axis may have."""

    low: Size
    high: Size | None
    equals: Text
    note: Text


class Interface(Strict):
    """What the inputs have to be; conditions have a grammar of their own, read on use."""

    inputs: list[TensorInput | ValueInput | SizeInput]
    sizes: dict[Identifier, SizeRange]
    conditions: list[Text]
    note: Text


class Module(Strict):
    """A small module that the graph calls: the name of its class and what makes it again."""

    name: Path
    kind: Text
    config: Encoded


class Files(Strict):
    """The files of a directory, named by their content."""

    model: Annotated[str, Field(pattern=r"^model-[0-9a-f]{16}\.safetensors$")]
    extras: Annotated[str, Field(pattern=r"^extras-[0-9a-f]{16}\.safetensors$")]


class Manifest(Strict):
    """Everything that a file says beside its tensors."""

    format: Literal["fxcompress"]
    version: Literal[2]
    torch: Text
    graph: Graph
    interface: Interface | None
    modules: list[Module]
    training: bool
    tensors: list[Owned | Tied]
    extras: dict[Text, Stored]
    user: Encoded
    files: Files | None = None

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        _refuse_twins([entry.name for entry in self.tensors], "tensor")
        _refuse_twins([entry.name for entry in self.modules], "module")
        owned: set[str] = set()
        for entry in self.tensors:
            if isinstance(entry, Owned):
                owned.add(entry.name)
            elif entry.alias_of not in owned:
                raise ValueError(f"'{entry.name}' stands for '{entry.alias_of}', not seen before")
        return self


class _Head(BaseModel):
    model_config = ConfigDict(strict=True)

    format: Literal["fxcompress"]
    version: int


def version_of(text: bytes, place: object) -> int:
    """The version of the format in which a manifest was written.

    Raises:
        LoadError: It is no manifest of ours.
    """
    try:
        return _Head.model_validate_json(text).version
    except ValidationError as error:
        raise LoadError(
            f"the manifest in {place} is damaged or not of a saved program ({first_error(error)})"
        ) from error


def parse(text: bytes, place: object) -> Manifest:
    """A manifest from JSON text.

    Raises:
        LoadError: It is no JSON, nests too deeply, or says what no manifest may; the message tells
            where.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise LoadError(
            f"the manifest in {place} is damaged ({first_error(error)}); save the program again"
        ) from error


def first_error(error: ValidationError) -> str:
    """Where the first fault is, and which."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"[:300]


def _refuse_twins(names: list[str], kind: str) -> None:
    if len(set(names)) < len(names):
        twin = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"two of kind {kind} are called '{twin}'")
