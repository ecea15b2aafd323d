"""Data on the command line: files of arrays, and functions that return batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import fxcompress as fx
from fxcompress.cli import app
from fxcompress.errors import LoadError, PlanError
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

def loader():
    data = torch.utils.data.TensorDataset(torch.eye(4))
    return torch.utils.data.DataLoader(data, batch_size=4)

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


@pytest.fixture
def program() -> fx.Program:
    """It takes ``input``, any number of samples of four."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return fx.compile(net, (torch.ones(2, 4),))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        return self.layer(self.table(ids) * scale)  # type: ignore[no-any-return]


def test_arrays_become_batches_of_what_the_program_takes(
    tmp_path: Path, program: fx.Program
) -> None:
    """One array alone needs no name, and floating types are the model's."""
    labels = torch.arange(70)
    np.save(tmp_path / "a.npy", INPUTS.double().numpy())
    np.savez(tmp_path / "b.npz", INPUTS.numpy())
    np.savez(tmp_path / "c.npz", x=INPUTS.numpy(), labels=labels.numpy())
    save_file({"input": INPUTS, "labels": labels}, tmp_path / "d.safetensors")
    for name in ("a.npy", "b.npz", "c.npz", "d.safetensors"):
        batches: Any = load_task(str(tmp_path / name), program).data
        assert [len(batch["input"]) for batch in batches] == [32, 32, 6]
        assert torch.equal(torch.cat([batch["input"] for batch in batches]), INPUTS)
        if name > "c":
            assert torch.equal(torch.cat([batch["labels"] for batch in batches]), labels)


def test_several_inputs_go_by_name(tmp_path: Path) -> None:
    found = fx.compile(Two().eval(), (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, 4)))
    np.savez(tmp_path / "x.npz", scale=np.ones((5, 3, 4)), ids=np.ones((5, 3), np.int64))
    (batch,) = load_task(str(tmp_path / "x.npz"), found).data
    assert batch["scale"].dtype == torch.float32
    assert found(**batch).shape == (5, 3, 3)
    np.savez(tmp_path / "y.npz", scale=np.ones((5, 3, 4)), tokens=np.ones((5, 3), np.int64))
    with pytest.raises(LoadError, match=r"holds 'scale', 'tokens'; the model takes 'ids', 'scale'"):
        load_task(str(tmp_path / "y.npz"), found)


def test_a_function_returns_batches_or_a_task(code: Path, program: fx.Program) -> None:
    (batch,) = load_task(f"{code}:batches", program).data
    assert torch.equal(batch, torch.eye(4))
    assert load_task(f"{code}:task", program).loss is torch.nn.functional.cross_entropy


@pytest.mark.parametrize("source", ["x.npy", "x.npz", "batches", "loader", "saved"])
def test_with_data_least_squares_is_the_default(
    code: Path, tmp_path: Path, program: fx.Program, source: str
) -> None:
    """The program is the one that the pass gives in Python, on the same data."""
    np.save(tmp_path / "x.npy", np.eye(4))
    np.savez(tmp_path / "x.npz", input=np.eye(4))
    program.save(tmp_path / "whole.fxc")
    (tmp_path / "weights.safetensors").write_bytes(save(dict(program.module.state_dict())))
    spec = str(tmp_path / source) if source.startswith("x") else f"{code}:{source}"
    model = [f"{code}:model", "--weights", str(tmp_path / "weights.safetensors")]
    if source == "saved":
        model, spec = [str(tmp_path / "whole.fxc")], f"{code}:batches"
    out = tmp_path / "small.fxc"

    words = ["compile", *model, "--ratio", "0.5", "--data", spec, "-o", str(out)]
    result = CliRunner().invoke(app, words)

    assert result.exit_code == 0, result.output
    found = fx.load(out)
    assert found.history == ("LeastSquaresPruning(ratio=0.5)",)
    wanted = fx.apply(
        replace(program, task=fx.Task([torch.eye(4)])), LeastSquaresPruning(ratio=0.5)
    )
    for name, value in wanted.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)


def test_without_sizes_or_passes_data_change_nothing(code: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.fxc"
    words = ["compile", f"{code}:model", "--data", f"{code}:batches", "-o", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert not fx.load(out).history


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.npy", "there is no file missing.npy"),
        ("data", "'data' is no data"),
        ("{code}:nothing", "returned nothing"),
        ("{code}:tensor", "returned no data"),
        ("{code}:absent", "no function 'absent'"),
        ("{folder}/broken.npz", "cannot be read as plain arrays"),
        ("{folder}/empty.npy", "cannot be read as plain arrays"),
        ("{folder}/uneven.npz", "same number of samples"),
        ("{folder}/scalar.npy", r"has shape \(\); the model takes \(2, 4\)"),
        ("{folder}/wide.npy", r"has shape \(3, 5\); the model takes \(2, 4\)"),
        ("{folder}/integers.npy", "is torch.uint8 and the model takes torch.float32"),
        ("{folder}/labels.npz", "holds no inputs; the model takes 'input'"),
    ],
)
def test_what_is_no_data_is_refused(
    code: Path, tmp_path: Path, program: fx.Program, spec: str, message: str
) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "uneven.npz", input=np.ones((3, 4)), labels=np.ones(4))
    np.savez(tmp_path / "labels.npz", labels=np.ones(4))
    np.save(tmp_path / "scalar.npy", np.float32(3))
    np.save(tmp_path / "wide.npy", np.ones((3, 5)))
    np.save(tmp_path / "integers.npy", np.ones((3, 4), np.uint8))
    with pytest.raises(LoadError, match=message):
        load_task(spec.format(code=code, folder=tmp_path), program)


def test_a_call_with_other_names_says_what_the_program_takes(program: fx.Program) -> None:
    for wrong in ({"x": torch.ones(2, 4)}, {"input": torch.ones(2, 4), "mask": None}, {}):
        task = fx.Task([wrong])
        with pytest.raises(PlanError, match=r"program takes:? input"):
            fx.apply(replace(program, task=task), LeastSquaresPruning(ratio=0.5))
