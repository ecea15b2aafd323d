"""The files: one safetensors file, or a directory of two with the manifest beside them.

The two are named by their content and the manifest names them, so that saving to a directory that
holds another program is one step: the manifest is replaced.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.files.drafts import is_draft
from fxcompress.files.tensors import DTYPES, Part, write_tensors
from fxcompress.files.write import (
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

Parts = Mapping[str, Part]
Digests = Mapping[str, str]
Manifest = Callable[[Digests], Mapping[str, Any]]
"""What a file says of its tensors, from their digests by name."""


def write(path: Path, manifest: Manifest, weights: Parts, extras: Parts) -> None:
    """Write a manifest and its tensors to `path`, a file or a directory by its suffix.

    One tensor is held at a time.

    Raises:
        WriteError: Something that is not ours is in the way, or the disk refuses.
    """

    def described(digests: Digests) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **manifest(digests)}

    program_target(path)
    if path.suffix in SINGLE_FILE:
        with written(path) as draft:
            every = {**weights, **extras}
            write_tensors(draft, every, lambda digests: {FORMAT: sealed(described(digests))})
        return
    former = set(_parts(path).values())
    with written_folder(
        path, MANIFEST, lambda name: name in former or bool(_PART.fullmatch(name)), _is_ours
    ) as draft:
        digests: dict[str, str] = {}
        files = {
            kind: _written_part(draft.with_name(f"{kind}.safetensors"), parts, digests)
            for kind, parts in (("model", weights), ("extras", extras))
        }
        text = sealed({**described(digests), "files": files}, indent=1)
        draft.write_text(text, encoding="utf-8")


def program_target(path: Path) -> Path:
    """Where a program that is saved to `path` goes.

    Raises:
        WriteError: Something that is not ours is in the way, or nothing can be there.
    """
    return file_target(path) if path.suffix in SINGLE_FILE else folder_target(path, _is_ours)


def _written_part(path: Path, parts: Parts, digests: dict[str, str]) -> str:
    """Write one of the files, note the digests of its tensors, and give its name."""
    digests |= write_tensors(path, parts, lambda _: {"format": "pt"})
    return named_by_content(path, f"{path.stem}-{{}}.safetensors").name


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


def storable(tensor: Tensor, read: Callable[[], Tensor], name: str) -> Part:
    """A tensor as safetensors takes it: on the CPU, and complex numbers as pairs.

    Args:
        tensor: Has its shape and type.
        read: Gives its values.
        name: Of the tensor, for messages.

    Raises:
        FxCompressError: The format has no such type.
    """
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if dtype.is_complex:
        shape, dtype = (*shape, 2), dtype.to_real()
    if dtype not in DTYPES.values():
        raise FxCompressError(f"'{name}' is {dtype}, which no safetensors file can hold")
    return Part(shape, dtype, lambda: _plain(read()))


def _plain(tensor: Tensor) -> Tensor:
    own = tensor.detach().cpu().resolve_conj().resolve_neg()
    return (torch.view_as_real(own) if own.is_complex() else own).contiguous()
