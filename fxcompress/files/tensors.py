"""Write a safetensors file one tensor at a time.

The library's own writer takes all tensors at once. Its format is a header of JSON, led by the
header's length and padded to a multiple of eight, and then the tensors' bytes in the order of
their offsets (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
}
"""The names that the format has for types of elements."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8

Header = Callable[[Mapping[str, str]], Mapping[str, str]]
"""What the file says beside its tensors, from their digests. Its length depends on no digest."""


@dataclass(frozen=True)
class Part:
    """A tensor to be written.

    Attributes:
        shape: Its sizes in the file.
        dtype: Its element type in the file.
        read: Gives it, contiguous and on the CPU; called once, when its turn comes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """How many bytes it takes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of the elements, row by row, as hexadecimal digits. `tensor` is on the CPU."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def write_tensors(draft: Path, parts: Mapping[str, Part], header: Header) -> dict[str, str]:
    """Write a safetensors file, the draft of one, and give the digest of each tensor.

    One tensor is held at a time. The header stands before the tensors and may hold their digests,
    so it is written last, into the room that a header with other digests takes.

    Raises:
        OSError: The disk refuses.
    """
    order = sorted(parts, key=lambda name: (-parts[name].dtype.itemsize, name))
    blank = dict.fromkeys(parts, "0" * 64)
    with draft.open("wb") as file:
        room = len(_header(parts, order, header(blank)))
        file.seek(room)
        digests = {name: _written(file, parts[name]) for name in order}
        file.truncate()
        file.seek(0)
        head = _header(parts, order, header(digests))
        assert len(head) == room, "the header's length depends on a digest"
        file.write(head)
    return digests


def _written(file: IO[bytes], part: Part) -> str:
    tensor = part.read()
    assert (tuple(tensor.shape), tensor.dtype) == (part.shape, part.dtype)
    content = _bytes(tensor)
    file.write(content)
    return hashlib.sha256(content).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _header(parts: Mapping[str, Part], order: Iterable[str], said: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(said)}
    start = 0
    for name in order:
        part = parts[name]
        end = start + part.bytes
        entries[name] = {
            "dtype": _NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
