"""Checkpoints that are not the model's, or change, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fxcompress as fx
from checkpoints import LITERAL, reloaded, state_of, stored
from fxcompress.capture.checkpoint import INDEX
from models import build


def _compiled(weights: Path, model: nn.Module | None = None) -> fx.Program:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) if model is None else model
    return fx.compile(model, (torch.ones(2, 3),), weights=weights)


def test_a_checkpoint_that_is_not_the_models_is_refused_by_name(tmp_path: Path) -> None:
    state = state_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    state["extra"] = state.pop("0.bias")
    state["0.weight"] = state["0.weight"].double()
    state["2.weight"] = torch.ones(2, 5)
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(fx.CaptureError) as raised:
        _compiled(tmp_path / "m.safetensors")
    said = str(raised.value)
    assert "the checkpoint lacks '0.bias'" in said
    assert "the model lacks 'extra'" in said
    assert "'0.weight' is [4, 3] torch.float64 in the checkpoint and [4, 3] torch.float32" in said
    assert "'2.weight' is [2, 5]" in said


def test_tied_tensors_with_two_values_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    _compiled(tmp_path / "m.safetensors", model)
    state["1.weight"][2, 2] += 1
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(fx.CaptureError, match=r"'0.weight' and '1.weight' are one tensor"):
        _compiled(tmp_path / "m.safetensors", model)


class Scaled(nn.Module):
    """A buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * self.scale
        return out


def test_a_buffer_that_no_checkpoint_holds_keeps_the_models_value(tmp_path: Path) -> None:
    model = Scaled()
    weights = stored(model, tmp_path / "weights")
    program = reloaded(_compiled(weights, model), tmp_path / "a.fxc")
    assert program(torch.ones(2, 3)).equal(model(torch.ones(2, 3)))
    with pytest.raises(fx.CaptureError, match="'scale' of Scaled lie on the meta device"):
        _compiled(weights, model.to("meta"))


def test_a_number_that_the_forward_writes_out_is_lost(tmp_path: Path) -> None:
    model, args, kwargs = build(LITERAL)
    weights = stored(model, tmp_path / "weights")
    with pytest.raises(fx.CaptureError, match="numbers that a forward writes out"):
        fx.compile(model, args, kwargs, weights=weights)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no .safetensors file"),
        ({"m.safetensors": b"not one"}, "damaged or no safetensors file"),
        ({INDEX: b"{}"}, "is damaged"),
        ({INDEX: b'{"weight_map": {"a": "../m.safetensors"}}'}, "no file in its folder"),
        ({INDEX: b'{"weight_map": {"a": "m.safetensors"}}'}, "damaged or no safetensors file"),
    ],
    ids=["nothing", "no safetensors", "empty index", "another folder", "missing file"],
)
def test_a_folder_without_a_checkpoint(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(fx.CaptureError, match=words):
        _compiled(tmp_path)


def test_two_files_with_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(fx.CaptureError, match="both have 'x'"):
        _compiled(tmp_path)


def test_inputs_need_values_and_weights_a_module(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    weights = stored(model, tmp_path / "weights")
    with pytest.raises(fx.CaptureError, match="example inputs need values"):
        fx.compile(model.to("meta"), (torch.ones(2, 3, device="meta"),), weights=weights)
    program = torch.export.export(nn.Linear(3, 4), (torch.ones(2, 3),))
    with pytest.raises(fx.CaptureError, match="ExportedProgram"):
        fx.compile(program, weights=weights)


def test_a_file_that_changes_while_it_is_needed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    weights = stored(model, tmp_path / "weights")
    program = _compiled(weights, model)
    save_file({"x": torch.ones(1)}, weights / "model-0.safetensors")
    with pytest.raises(fx.LoadError, match="has changed"):
        program.save(tmp_path / "a.fxc")
    assert not (tmp_path / "a.fxc").exists()
