"""Reading the files that `fxcompress.io.files` writes: nothing is believed before it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxcompress.errors import LoadError
from fxcompress.files.tensors import digest_of
from fxcompress.io.files import FORMAT, MANIFEST
from fxcompress.io.seal import unsealed

if TYPE_CHECKING:
    from fxcompress.io.schema import Manifest, Stored

EXTRA = "extra:"
"""Before the names of tensors that are no parameters or buffers."""

_MAX_MANIFEST = 256 * 2**20


def read(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest and the tensors that `write` wrote, each in the memory layout it had.

    Raises:
        LoadError: There is nothing, nothing of ours, a damaged file or one of another version; or
        the manifest does not fit the tensors: the message names the tensor and both shapes.
    """
    if not path.exists():
        raise LoadError(f"there is nothing at {path}; give the path that was saved to")
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise LoadError(f"{path} is neither a file nor a directory; give the path saved to")
    header, stored = _read_tensors(path)
    if FORMAT not in header:
        raise LoadError(f"{path} holds tensors but no program; load it with safetensors")
    _require(header.keys() == {FORMAT}, f"{path} is damaged: its header holds something else")
    manifest = _parsed(header[FORMAT].encode(), path)
    _require(manifest.files is None, f"the manifest in {path} names other files")
    return manifest, _restored(manifest, stored)


def _read_directory(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """What the manifest names; once more where another program was saved there meanwhile."""
    place = path / MANIFEST
    if not place.is_file():
        raise LoadError(f"{path} is not a saved program: it has no {MANIFEST}")
    _require(place.stat().st_size <= _MAX_MANIFEST, f"{place} is too large for a manifest")
    text = place.read_bytes()
    try:
        manifest = _parsed(text, place)
        return manifest, _restored(manifest, _read_parts(path, manifest))
    except LoadError:
        if place.read_bytes() != text:
            return _read_directory(path)
        raise


def _read_parts(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    if manifest.files is None:
        raise LoadError(f"the manifest in {path} names no files; it belongs into one with tensors")
    stored: dict[str, Tensor] = {}
    for name in (manifest.files.model, manifest.files.extras):
        header, tensors = _read_tensors(path / name)
        _require(header == {"format": "pt"}, f"{path / name} is damaged: another header")
        _require(not stored.keys() & tensors.keys(), f"{path / name} repeats names")
        stored |= tensors
    return stored


def _parsed(text: bytes, place: Path) -> Manifest:
    from fxcompress.io.schema import VERSION, parse, version_of  # pydantic is slow to import

    version = version_of(text, place)
    if version < VERSION:
        raise LoadError(
            f"{place} was saved in version {version} of the format, which has no digests and is "
            "not read any more; load it with the fxcompress that saved it, compile the model "
            "again here, or export it there with fxcompress.export.to_onnx"
        )
    if version > VERSION:
        raise LoadError(
            f"{place} was saved in version {version} of the format, "
            f"this fxcompress reads version {VERSION}; upgrade fxcompress"
        )
    return parse(unsealed(text, place), place)


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise LoadError(
            f"{path} is damaged or no safetensors file ({error}); save the program again"
        ) from error


def _restored(manifest: Manifest, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that the manifest speaks of, under its name in the file."""
    from fxcompress.io.schema import Owned

    entries: dict[str, Stored] = {EXTRA + name: entry for name, entry in manifest.extras.items()}
    entries |= {entry.name: entry for entry in manifest.tensors if isinstance(entry, Owned)}
    for name in stored.keys() - entries.keys():
        raise LoadError(f"the file holds the tensor '{name}', which the manifest does not mention")
    return {name: _checked(name, entry, stored) for name, entry in entries.items()}


def _checked(name: str, entry: Stored, stored: Mapping[str, Tensor]) -> Tensor:
    """The stored tensor, checked against what the manifest says of it, in its old memory layout."""
    shown = name.removeprefix(EXTRA)
    if name not in stored:
        raise LoadError(f"the manifest speaks of the tensor '{shown}', which is not in the file")
    tensor = found = stored[name]
    dtype = getattr(torch, entry.dtype)
    if dtype.is_complex and tensor.ndim and tensor.shape[-1] == 2:
        tensor = torch.view_as_complex(tensor)
    if list(tensor.shape) != entry.shape or tensor.dtype != dtype:
        raise LoadError(
            f"the manifest does not fit the tensors: '{shown}' is {entry.shape} {dtype} in the "
            f"manifest and {list(tensor.shape)} {tensor.dtype} in the file; "
            "the two belong to different programs"
        )
    if digest_of(found) != entry.digest:
        raise LoadError(
            f"the tensor '{shown}' is damaged: its digest is not that of the manifest; "
            "save the program again"
        )
    return _laid_out(tensor, entry.stride)


def _laid_out(tensor: Tensor, stride: list[int]) -> Tensor:
    """A copy with the given strides, where these give every element a place of its own.

    Always a copy: what safetensors gives lies in the mapped file, aligned to nothing, and sums over
    unaligned memory round differently.
    """
    expected = 1
    for dim in sorted(range(tensor.ndim), key=lambda dim: (stride[dim], tensor.shape[dim])):
        if tensor.shape[dim] != 1 and stride[dim] != expected:
            return tensor.clone()
        expected *= tensor.shape[dim]
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise LoadError(f"{otherwise}; save the program again")
