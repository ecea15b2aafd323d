"""Data on the command line: files of arrays, and functions that return batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import fxcompress as fx
from fxcompress.cli import app
from fxcompress.errors import LoadError
from fxcompress.loaders import load_task
from fxcompress.passes import LeastSquaresPruning

CODE = """
import torch
import fxcompress as fx

def model():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return net, (torch.ones(2, 4),)

def batches():
    return [torch.eye(4)]

def task():
    return fx.Task([(torch.eye(4), torch.arange(4) % 3)], torch.nn.functional.cross_entropy)

def nothing():
    return None

def tensor():
    return torch.eye(4)
"""
INPUTS = torch.randn(70, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_arrays_become_batches_with_their_names(tmp_path: Path) -> None:
    labels = torch.arange(70)
    np.save(tmp_path / "x.npy", INPUTS.numpy())
    np.savez(tmp_path / "x.npz", input=INPUTS.numpy(), labels=labels.numpy())
    save_file({"input": INPUTS, "labels": labels}, tmp_path / "x.safetensors")

    alone: Any = load_task(str(tmp_path / "x.npy")).data
    assert [len(batch) for batch in alone] == [32, 32, 6]
    assert torch.equal(torch.cat(alone), INPUTS)
    for name in ("x.npz", "x.safetensors"):
        named: Any = load_task(str(tmp_path / name)).data
        assert torch.equal(torch.cat([batch["input"] for batch in named]), INPUTS)
        assert torch.equal(torch.cat([batch["labels"] for batch in named]), labels)


def test_a_function_returns_batches_or_a_task(code: Path) -> None:
    (batch,) = load_task(f"{code}:batches").data
    assert torch.equal(batch, torch.eye(4))
    assert load_task(f"{code}:task").loss is torch.nn.functional.cross_entropy


@pytest.mark.parametrize("file", ["x.npy", "x.npz", "batches"])
def test_with_data_least_squares_is_the_default(code: Path, tmp_path: Path, file: str) -> None:
    """The program is the one that the pass gives in Python, on the same data."""
    np.save(tmp_path / "x.npy", INPUTS.numpy())
    np.savez(tmp_path / "x.npz", input=INPUTS.numpy())
    spec = f"{code}:batches" if file == "batches" else str(tmp_path / file)
    out = tmp_path / "small.fxc"

    words = ["compile", f"{code}:model", "--ratio", "0.5", "--data", spec, "-o", str(out)]
    result = CliRunner().invoke(app, words)

    assert result.exit_code == 0, result.output
    assert "LeastSquaresPruning(ratio=0.5)" in fx.load(out).history[-1]


def test_without_sizes_or_passes_data_change_nothing(code: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.fxc"
    words = ["compile", f"{code}:model", "--data", f"{code}:batches", "-o", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert not fx.load(out).history


def test_a_saved_program_takes_data_too(code: Path, tmp_path: Path) -> None:
    program = fx.compile(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)),
                         (torch.ones(2, 4),))  # fmt: skip
    program.save(tmp_path / "whole.fxc")
    out = tmp_path / "small.fxc"
    words = ["compile", str(tmp_path / "whole.fxc"), "--ratio", "0.5", "--data",
             f"{code}:batches", "-o", str(out)]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    wanted = fx.apply(
        fx.compile(program.module, (torch.ones(2, 4),), task=[torch.eye(4)]),
        LeastSquaresPruning(ratio=0.5),
    )
    assert fx.load(out).report.params.after == wanted.report.params.after


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.npy", "there is no file missing.npy"),
        ("data", "'data' is no data"),
        ("{code}:nothing", "returned nothing"),
        ("{code}:tensor", "returned no data"),
        ("{code}:absent", "no function 'absent'"),
        ("{folder}/broken.npz", "cannot be read as plain arrays"),
        ("{folder}/uneven.npz", "same number of samples"),
        ("{folder}/scalar.npy", "same number of samples"),
    ],
)
def test_what_is_no_data_is_refused(code: Path, tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "uneven.npz", a=np.ones(3), b=np.ones(4))
    np.save(tmp_path / "scalar.npy", np.float32(3))
    with pytest.raises(LoadError, match=message):
        load_task(spec.format(code=code, folder=tmp_path))
