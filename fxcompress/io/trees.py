"""The structure of inputs and outputs as JSON, also where classes of the user's are part of it."""

from __future__ import annotations

import json
from collections import OrderedDict, deque, namedtuple
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.errors import FxCompressError, LoadError

if TYPE_CHECKING:
    from fxcompress.io.schema import Tree

_PLAIN = (tuple, list, dict)
_CONTAINERS: dict[str, type] = {
    "builtins.tuple": tuple,
    "builtins.list": list,
    "builtins.dict": dict,
    "collections.OrderedDict": OrderedDict,
}
_REFUSED = frozenset({"collections.defaultdict", pytree.NO_SERIALIZED_TYPE_NAME_FOUND})
"""A defaultdict names a function of any module, so it becomes a dict; others have no name."""


def dump_spec(spec: pytree.TreeSpec, where: str) -> dict[str, Any]:
    """`spec` as JSON. Classes are written with their fields, so that they can be read without."""
    try:
        _, schema = json.loads(pytree.treespec_dumps(spec))
    except (NotImplementedError, TypeError) as error:
        raise FxCompressError(
            f"the structure of {where} cannot be written to a file: {error} "
            "Let the model take and return tensors, lists, tuples, dicts or dataclasses registered "
            "with torch.export.register_dataclass"
        ) from error
    if "__enum__" in json.dumps(schema):  # to read it, torch would import what the file names
        raise FxCompressError(
            f"{where} have keys that are members of an enum, which no file without code can hold; "
            "use strings"
        )
    example = pytree.tree_unflatten([torch.zeros(0)] * spec.num_leaves, spec)
    return _annotated(schema, example)


def load_spec(tree: Tree) -> pytree.TreeSpec:
    """The structure that `dump_spec` wrote, with a dict where a class is not registered here.

    Only containers of Python and classes that this process has registered with torch are made;
    nothing is imported.

    Raises:
        LoadError: A class is unknown and has no fields, or a container does not fit its content.
    """
    if tree.type is None:
        _require(tree.context is None and not tree.children_spec, tree)
        return pytree.tree_structure(0)
    children = [load_spec(child) for child in tree.children_spec]
    spec = pytree.TreeSpec(*_kind_and_context(tree), children)
    if not spec.num_leaves and tree.type not in _CONTAINERS:
        return spec  # a class may refuse to be made of nothing
    made = pytree.tree_unflatten([torch.zeros(0)] * spec.num_leaves, spec)
    _require(pytree.tree_structure(made) == spec, tree)
    return spec


def _kind_and_context(tree: Tree) -> tuple[Any, Any]:
    """The class of a container, and what torch keeps beside its elements."""
    count = len(tree.children_spec)
    if tree.type in ("builtins.tuple", "builtins.list"):
        _require(_plain(tree) is None, tree)
        return _CONTAINERS[tree.type], None
    if tree.type in ("builtins.dict", "collections.OrderedDict"):
        return _CONTAINERS[tree.type], _keys(_plain(tree), count, tree)
    if tree.type == "collections.deque":
        bound = _plain(tree)
        _require(bound is None or (type(bound) is int and count <= bound), tree)
        return deque, bound
    if tree.type == "collections.namedtuple":
        kind = _registered(tree.context)
        _require(issubclass(kind, tuple) and len(getattr(kind, "_fields", ())) == count, tree)
        return namedtuple, kind
    return _class_and_context(tree, count)


def _class_and_context(tree: Tree, count: int) -> tuple[Any, Any]:
    """A class of the user's, or a dict of its fields where it is not registered."""
    name = tree.type
    if name in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE and name not in _REFUSED:
        kind = _registered(name)
        read = pytree.SUPPORTED_SERIALIZED_TYPES[kind].from_dumpable_context
        _require("__enum__" not in json.dumps(tree.context), tree)  # torch would import its module
        return kind, _plain(tree) if read is None else read(tree.context)
    if tree.fields is None:
        raise LoadError(
            f"the inputs or outputs hold a {str(name)[:80]}, which is not registered here; "
            "import the module that defines it before loading"
        )
    return dict, _keys(tree.fields, count, tree)


def _registered(name: object) -> type:
    if not isinstance(name, str) or name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        raise LoadError(
            f"the inputs or outputs hold a {str(name)[:80]}, which is not registered here; "
            "import the module that defines it before loading"
        )
    kind = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name]
    if not isinstance(kind, type):
        raise LoadError(f"{name} is no class of the inputs or outputs; the manifest is damaged")
    return kind


def _plain(tree: Tree) -> Any:
    _require(isinstance(tree.context, str), tree)
    return json.loads(tree.context)


def _keys(keys: object, count: int, tree: Tree) -> list[Any]:
    _require(isinstance(keys, list) and len(keys) == count, tree)
    assert isinstance(keys, list)
    _require(all(key is None or isinstance(key, str | int | float) for key in keys), tree)
    _require(len(set(keys)) == count, tree)
    return keys


def _require(held: bool, tree: Tree) -> None:
    if not held:
        raise LoadError(
            f"the structure of the inputs or outputs is damaged: a {str(tree.type)[:80]} of "
            f"{len(tree.children_spec)} with {str(tree.context)[:80]}; save the program again"
        )


def _annotated(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """Add module and field names to every class of the user's own in `schema`."""
    if schema["type"] is None:
        return schema
    node = pytree.SUPPORTED_NODES[type(example)]
    children, _ = node.flatten_fn(example)
    extra: dict[str, Any] = {}
    if type(example) not in _PLAIN:
        extra = {"module": type(example).__module__, "fields": _fields(node, example)}
    parts = zip(schema["children_spec"], children, strict=True)
    return {**schema, **extra, "children_spec": [_annotated(*part) for part in parts]}


def _fields(node: pytree.NodeDef, example: Any) -> list[str] | None:
    if node.flatten_with_keys_fn is None:
        return None
    keyed, _ = node.flatten_with_keys_fn(example)
    return [str(getattr(key, "key", getattr(key, "name", key))) for key, _ in keyed]
