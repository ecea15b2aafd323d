"""Files of ours with something changed, digests and all, as an attacker would write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fxcompress.files.tensors import digest_of
from fxcompress.io.seal import sealed, unsealed

MANIFEST = "fxcompress.json"
Change = Callable[[dict[str, Any]], object]


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest of a saved program, a file or a directory."""
    if path.is_dir():
        text = (path / MANIFEST).read_bytes()
    else:
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["fxcompress"].encode()
    found: dict[str, Any] = json.loads(unsealed(text, path))
    return found


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Put a manifest into a saved program, sealed as it should be."""
    if path.is_dir():
        (path / MANIFEST).write_text(sealed(manifest, 1))
    else:
        save_file(load_file(path), path, {"fxcompress": sealed(manifest)})


def change_manifest(path: Path, change: Change) -> None:
    """Change the manifest of a saved program in place."""
    manifest = manifest_of(path)
    change(manifest)
    write_manifest(path, manifest)


def redigest(path: Path) -> None:
    """Make the digests of parameters and buffers fit the tensors in a directory."""
    weights = load_file(path / manifest_of(path)["files"]["model"])

    def change(manifest: dict[str, Any]) -> None:
        for entry in manifest["tensors"]:
            if entry["name"] in weights:
                entry["digest"] = digest_of(weights[entry["name"]])

    change_manifest(path, change)
