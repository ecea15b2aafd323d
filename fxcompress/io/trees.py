"""The structure of inputs and outputs as JSON, also where classes of the user's are part of it."""

from __future__ import annotations

import importlib
import json
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.errors import FxCompressError, LoadError

_PLAIN = (tuple, list, dict)


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
    example = pytree.tree_unflatten([torch.zeros(0)] * spec.num_leaves, spec)
    return _annotated(schema, example)


def load_spec(schema: dict[str, Any]) -> pytree.TreeSpec:
    """The structure that `dump_spec` wrote, with a dict where a class cannot be imported."""
    protocol = json.loads(pytree.treespec_dumps(pytree.tree_structure(0)))[0]
    return pytree.treespec_loads(json.dumps([protocol, _resolved(schema)]))


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


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` as torch writes it, with a dict wherever the class is not to be had."""
    children = [_resolved(child) for child in schema["children_spec"]]
    plain = {"type": schema["type"], "context": schema["context"], "children_spec": children}
    if schema["type"] is None or _is_known(schema["type"], schema.get("module")):
        return plain
    fields = schema.get("fields")
    if fields is None:
        raise LoadError(
            f"the inputs or outputs hold a {schema['type']}, which is not registered here; "
            "import the module that defines it before loading"
        )
    return {"type": "builtins.dict", "context": json.dumps(fields), "children_spec": children}


def _is_known(name: str, module: str | None) -> bool:
    if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE and module:
        try:
            importlib.import_module(module)  # classes register themselves where they are defined
        except ImportError:
            return False
    return name in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
