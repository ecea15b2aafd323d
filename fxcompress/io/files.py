"""The files: one safetensors file, or a directory of two with the manifest beside them.

The two are named by their content and the manifest names them, so that saving to a directory that
holds another program is one step: the manifest is replaced.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fxcompress.errors import LoadError
from fxcompress.files.drafts import is_draft
from fxcompress.files.write import (
    disk_error,
    file_target,
    folder_target,
    named_by_content,
    written,
    written_folder,
)
from fxcompress.io.seal import sealed

FORMAT = "fxcompress"
VERSION = 2
SINGLE_FILE = (".fxc", ".safetensors")

MANIFEST = "fxcompress.json"
_PART = re.compile(r"(model|extras)-[0-9a-f]{16}\.safetensors")
_OLD_PARTS = {"model": "model.safetensors", "extras": "extras.safetensors"}

Tensors = Mapping[str, Tensor]


def write(path: Path, manifest: Mapping[str, Any], weights: Tensors, extras: Tensors) -> None:
    """Write a manifest and its tensors to `path`, a file or a directory by its suffix.

    Raises:
        WriteError: Something that is not ours is in the way, or the disk refuses.
    """
    manifest = {"format": FORMAT, "version": VERSION, **manifest}
    program_target(path)
    if path.suffix in SINGLE_FILE:
        with written(path) as draft:
            _save({**weights, **extras}, draft, {FORMAT: sealed(manifest)})
        return
    former = set(_parts(path).values())
    with written_folder(
        path, MANIFEST, lambda name: name in former or bool(_PART.fullmatch(name)), _is_ours
    ) as draft:
        parts = {
            kind: _written_part(draft.with_name(f"{kind}.safetensors"), tensors)
            for kind, tensors in (("model", weights), ("extras", extras))
        }
        text = sealed({**manifest, "files": parts}, indent=1)
        draft.write_text(text, encoding="utf-8")


def program_target(path: Path) -> Path:
    """Where a program that is saved to `path` goes.

    Raises:
        WriteError: Something that is not ours is in the way, or nothing can be there.
    """
    return file_target(path) if path.suffix in SINGLE_FILE else folder_target(path, _is_ours)


def _written_part(part: Path, tensors: Tensors) -> str:
    _save(tensors, part, {"format": "pt"})
    return named_by_content(part, f"{part.stem}-{{}}.safetensors").name


def _save(tensors: Tensors, draft: Path, header: dict[str, str]) -> None:
    """Write a safetensors file; its library has an error of its own for a full disk."""
    try:
        save_file(dict(tensors), draft, header)
    except SafetensorError as error:
        raise disk_error(error) from error


def _named_parts(path: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The files of a directory, by kind. Directories of old name none."""
    parts = manifest.get("files", _OLD_PARTS)
    known = isinstance(parts, dict) and parts.keys() == _OLD_PARTS.keys()
    if not known or (parts != _OLD_PARTS and not all(map(_is_part, parts.values()))):
        raise LoadError(
            f"the manifest in {path / MANIFEST} names files that no save writes; "
            "save the program again"
        )
    return dict(parts)


def _is_part(name: object) -> bool:
    return isinstance(name, str) and _PART.fullmatch(name) is not None


def _parts(path: Path) -> dict[str, str]:
    """The files that a directory at `path` names now, if one of ours is there."""
    if not (path / MANIFEST).is_file():
        return {}
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
        return _named_parts(path, manifest) if ours else {}
    except (LoadError, ValueError):
        return {}


def _is_ours(path: Path) -> bool:
    """Whether a directory is a saved program, or what a save left that was broken off."""
    names = set(os.listdir(path))
    own = {MANIFEST, *_OLD_PARTS.values()} if MANIFEST in names else set()
    return bool(_parts(path)) or all(_is_part(n) or is_draft(n) for n in names - own)


def storable(tensor: Tensor) -> Tensor:
    """`tensor` as safetensors takes it: on the CPU, contiguous, with memory of its own."""
    own = tensor.detach().cpu()
    if own.is_complex():
        own = torch.view_as_real(own.resolve_conj())
    return own.clone(memory_format=torch.contiguous_format)
