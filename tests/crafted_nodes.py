"""Nodes of a saved graph as an attacker would write them, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress as fx
from crafted import manifest_of, write_manifest
from fxcompress.errors import LoadError
from programs import program

Node = dict[str, Any]
Craft = Callable[[dict[str, Any], str], object]


def refused(folder: Path, change: Craft) -> LoadError:
    """The error of loading a saved program that was changed; nothing that the change says ran.

    The change is given the manifest, and code that would leave a file behind.
    """
    flag, target = folder / "executed", folder / "crafted"
    program("mlp").save(target)
    manifest = manifest_of(target)
    change(manifest, f"__import__('pathlib').Path({str(flag)!r}).touch()")
    write_manifest(target, manifest)
    with pytest.raises(LoadError) as caught:
        fx.load(target)(torch.randn(2, 5, dtype=torch.float64))
    assert not flag.exists()
    return caught.value


def node_of(manifest: dict[str, Any], op: str) -> Node:
    return next(node for node in manifest["graph"]["nodes"] if node["op"] == op)


def called(manifest: dict[str, Any], part: str) -> Node:
    return next(node for node in manifest["graph"]["nodes"] if part in node["target"])


def leaf() -> Node:
    return {"type": None, "context": None, "children_spec": []}


def wrapped(kind: str, context: Any, **more: Any) -> Node:
    return {"type": kind, "context": context, "children_spec": [leaf()], **more}
