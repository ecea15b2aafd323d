"""The files: one safetensors file, or a directory of two with the manifest beside them.

Everything is written under another name beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxcompress.errors import FxCompressError, LoadError

FORMAT = "fxcompress"
VERSION = 1
SINGLE_FILE = (".fxc", ".safetensors")

_MANIFEST = "fxcompress.json"
_WEIGHTS = "model.safetensors"
_EXTRAS = "extras.safetensors"

Tensors = Mapping[str, Tensor]


def write(path: Path, manifest: Mapping[str, Any], weights: Tensors, extras: Tensors) -> None:
    """Write a manifest and its tensors to `path`, a file or a directory by its suffix.

    Raises:
        FxCompressError: Something that is not ours is in the way.
    """
    manifest = {"format": FORMAT, "version": VERSION, **manifest}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in SINGLE_FILE:
        _write_file(path, manifest, weights, extras)
    else:
        _write_directory(path, manifest, weights, extras)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors that `write` wrote.

    Raises:
        LoadError: There is nothing, nothing of ours, a damaged file or one of a later version.
    """
    if not path.exists():
        raise LoadError(f"there is nothing at {path}; give the path that was saved to")
    if path.is_file():
        header, tensors = _read_tensors(path)
        text = header.get(FORMAT)
        if text is None:
            raise LoadError(f"{path} holds tensors but no program; load it with safetensors")
        return _read_manifest(path, text), tensors
    if not (path / _MANIFEST).is_file():
        raise LoadError(f"{path} is not a saved program: it has no {_MANIFEST}")
    manifest = _read_manifest(path / _MANIFEST, (path / _MANIFEST).read_bytes())
    return manifest, {**_read_tensors(path / _WEIGHTS)[1], **_read_tensors(path / _EXTRAS)[1]}


def _write_file(path: Path, manifest: Mapping[str, Any], weights: Tensors, extras: Tensors) -> None:
    if path.is_dir():
        raise FxCompressError(f"{path} is a directory; choose another name for the file")
    beside = _name_beside(path)
    try:
        save_file({**weights, **extras}, beside, {FORMAT: json.dumps(manifest)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _write_directory(
    path: Path, manifest: Mapping[str, Any], weights: Tensors, extras: Tensors
) -> None:
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not _is_ours(path)):
        raise FxCompressError(
            f"{path} exists and is not a saved program; choose another directory, "
            f"or a file name that ends in {' or '.join(SINGLE_FILE)}"
        )
    beside, old = _name_beside(path), _name_beside(path)
    try:
        beside.mkdir()
        save_file(dict(weights), beside / _WEIGHTS, {"format": "pt"})
        save_file(dict(extras), beside / _EXTRAS, {"format": "pt"})
        (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        # A directory cannot replace a full one in one step; the old one is put back if the second
        # step fails.
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(beside, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    return {child.name for child in path.iterdir()} <= {_MANIFEST, _WEIGHTS, _EXTRAS}


def _name_beside(path: Path) -> Path:
    """A free name in the same directory, so that renaming crosses no file system."""
    name = tempfile.mktemp(prefix=f".{path.name}.", dir=path.parent)
    return Path(name)


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"{path} is damaged or no safetensors file ({error}); save the program again"
        ) from error


def _read_manifest(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
        version = manifest["version"] if manifest["format"] == FORMAT else None
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"the manifest in {path} is damaged ({error!r}); save again") from error
    if not isinstance(version, int):
        raise LoadError(f"the manifest in {path} is not of a saved program")
    if version > VERSION:
        raise LoadError(
            f"{path} was saved in version {version} of the format, "
            f"this fxcompress reads up to {VERSION}; upgrade fxcompress"
        )
    return dict(manifest)


def storable(tensor: Tensor) -> Tensor:
    """`tensor` as safetensors takes it: on the CPU, contiguous, with memory of its own."""
    own = tensor.detach().cpu()
    if own.is_complex():
        own = torch.view_as_real(own.resolve_conj())
    return own.clone(memory_format=torch.contiguous_format)
