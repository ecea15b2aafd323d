"""Files that are written one tensor at a time are safetensors files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fxcompress.files.tensors import DTYPES, Part, digest_of, write_tensors

SHAPES = ((), (0, 3), (1,), (3, 5), (2, 3, 4))


def _drawn(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return bits.view(dtype).reshape(shape)


def _part(tensor: Tensor) -> Part:
    return Part(tuple(tensor.shape), tensor.dtype, lambda: tensor)


@pytest.mark.parametrize("metadata", ["x", "ü\n" * 1000])
def test_the_library_reads_every_type_and_shape_back(tmp_path: Path, metadata: str) -> None:
    given = {
        f"{dtype}ä.{shape}": _drawn(shape, dtype) for dtype in DTYPES.values() for shape in SHAPES
    }
    parts = {name: _part(tensor) for name, tensor in given.items()}
    path = tmp_path / "draft.safetensors"
    digests = write_tensors(path, parts, lambda found: {"said": metadata + "".join(found.values())})
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()["said"]
    assert said == metadata + "".join(digests.values())
    assert found.keys() == given.keys() == digests.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert digest_of(found[name]) == digest_of(tensor) == digests[name]
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_a_file_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "draft.safetensors"
    write_tensors(path, {}, lambda _: {"format": "pt"})
    with safe_open(path, framework="pt") as file:
        assert not list(file.keys())


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    held: list[StorageWeakRef] = []

    def read() -> Tensor:
        assert all(one.expired() for one in held)
        value = torch.ones(7)
        held.append(StorageWeakRef(value.untyped_storage()))
        return value

    parts = {str(index): Part((7,), torch.float32, read) for index in range(5)}
    write_tensors(tmp_path / "draft.safetensors", parts, lambda _: {})
    assert len(held) == 5
