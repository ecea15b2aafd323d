"""Checkpoints: the tensors of safetensors files, read one at a time.

A checkpoint is one ``.safetensors`` file, or a folder of them. Where a folder has
``model.safetensors.index.json``, as Hugging Face's do, that names the file of each tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxcompress.errors import CaptureError, LoadError
from fxcompress.files.tensors import DTYPES
from fxcompress.graph.lazy import Places

INDEX = "model.safetensors.index.json"

_PIECE = 64 * 2**20
"""Bytes. The library maps a file, and what was touched of a mapped file counts as memory until it
is closed; so a tensor is copied in pieces, and the file is opened anew for each.
"""

Stamp = tuple[int, int]
"""Size and time of change of a file."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
        name: Its name there.
        file: The file.
        shape: Its sizes.
        dtype: Its element type.
        stamp: Of the file when it was first opened.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    stamp: Stamp

    def read(self, kept: Places) -> Tensor:
        """The elements that stay on each axis, in memory of their own.

        Raises:
            LoadError: The file has changed since it was opened, or cannot be read.
        """
        if not self.shape:
            with self._opened() as whole:
                return whole.clone()
        rows, *others = kept
        found = torch.empty(_sizes(self.shape, kept), dtype=self.dtype)
        for start in range(0, len(found), self._rows_at_a_time):
            piece = slice(start, start + self._rows_at_a_time)
            with self._opened() as whole:
                part = whole[piece] if rows is None else whole.index_select(0, rows[piece])
                for dim, index in enumerate(others, start=1):
                    part = part if index is None else part.index_select(dim, index)
                found[piece] = part
        return found

    @property
    def _rows_at_a_time(self) -> int:
        row = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        return max(1, _PIECE // max(row, 1))

    @contextmanager
    def _opened(self) -> Iterator[Tensor]:
        """The tensor in the mapped file, of which nothing has been read yet."""
        try:
            if _stamp(self.file) != self.stamp:
                raise LoadError(
                    f"{self.file} has changed since it was opened, and '{self.name}' is still "
                    "needed; compile again"
                )
            with safe_open(self.file, framework="pt") as file:
                yield file.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise LoadError(f"cannot read '{self.name}' from {self.file}: {error}") from error


@dataclass(frozen=True, eq=False)
class Stored:
    """The lazy value of a tensor in a checkpoint; see `graph.lazy`.

    Attributes:
        entry: Where it lies.
        kept: On each axis the indices that stay, or None.
    """

    entry: Entry
    kept: Places

    @classmethod
    def whole(cls, entry: Entry) -> Stored:
        """All of a tensor."""
        return cls(entry, (None,) * len(entry.shape))

    def read(self) -> Tensor:
        return self.entry.read(self.kept)

    def select(self, kept: Places) -> Stored:
        pairs = zip(self.kept, kept, strict=True)
        return Stored(self.entry, tuple(_composed(first, second) for first, second in pairs))


def open_checkpoint(path: Path) -> dict[str, Entry]:
    """What tensors a checkpoint has, by name; none is read.

    Raises:
        CaptureError: There is none, it is damaged, or two of its files have a tensor of one name.
    """
    if path.is_file():
        return _entries(path)
    if (path / INDEX).is_file():
        return _indexed(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CaptureError(
            f"weights: there is no .safetensors file at {path}; give one, or a folder with some"
        )
    found: dict[str, Entry] = {}
    for entry in (entry for file in files for entry in _entries(file).values()):
        if entry.name in found:
            raise CaptureError(
                f"weights: {found[entry.name].file} and {entry.file} both have '{entry.name}', and "
                f"no {INDEX} says which is meant; give one of the files"
            )
        found[entry.name] = entry
    return found


def _indexed(folder: Path) -> dict[str, Entry]:
    """The tensors that the index names, in the files where it says they are."""
    where = _weight_map(folder / INDEX)
    files = {name: _entries(folder / name) for name in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in files[file]:
            raise CaptureError(
                f"weights: {folder / INDEX} says that '{name}' is in {file}, and it is not; "
                "download the checkpoint again"
            )
    return {name: files[file][name] for name, file in where.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    """File names by tensor; files of other folders are none of the checkpoint's."""
    try:
        found: Any = json.loads(index.read_bytes())["weight_map"]
        good = all(isinstance(name, str) and Path(name).name == name for name in found.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaptureError(f"weights: {index} is damaged ({error}); download it again") from error
    if not good:
        raise CaptureError(f"weights: {index} names what is no file in its folder")
    where: Mapping[str, str] = found
    return where


def _entries(path: Path) -> dict[str, Entry]:
    try:
        stamp = _stamp(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: _entry(name, path, one, stamp) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CaptureError(
            f"weights: {path} is damaged or no safetensors file ({error})"
        ) from error


def _entry(name: str, file: Path, found: Any, stamp: Stamp) -> Entry:
    kind = found.get_dtype()
    if kind not in DTYPES:
        raise CaptureError(f"weights: '{name}' in {file} is {kind}, which torch does not have")
    return Entry(name, file, tuple(found.get_shape()), DTYPES[kind], stamp)


def _stamp(file: Path) -> Stamp:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def _sizes(shape: tuple[int, ...], kept: Places) -> list[int]:
    return [n if one is None else len(one) for n, one in zip(shape, kept, strict=True)]


def _composed(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The places of a selection of a selection."""
    if first is None or second is None:
        return second if first is None else first
    return first[second]
