"""Captured models in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxcompress.canonicalize import canonicalize
from fxcompress.capture import capture
from fxcompress.graph.captured import CapturedModule
from models import build

SUFFIXES = ("program.fxc", "program.safetensors", "program")


def captured(
    name: str = "padded_residual",
) -> tuple[CapturedModule, tuple[Any, ...], dict[str, Any]]:
    found = capture(*build(name))
    return canonicalize(found.module), found.args, found.kwargs


def content(path: Path) -> dict[str, bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


def part(path: Path, kind: str) -> Path:
    """The file of a saved directory that holds the weights, or the extras."""
    names: dict[str, str] = json.loads((path / "fxcompress.json").read_text())["files"]
    return path / names[kind]
