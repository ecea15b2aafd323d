from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import models
from fxcompress.capture import capture
from fxcompress.errors import ExportError, WriteError
from fxcompress.export import Example, check, to_onnx
from fxcompress.export.onnx.names import unique_names

BATCHED = ({0: "batch"},)


class Nested(nn.Module):
    """Keyword, nested, unused and constant inputs; every kind of result."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(
        self, x: Tensor, gain: float = 1.0, *, extra: dict[str, Tensor], unused: Tensor
    ) -> dict[str, Any]:
        y = self.drop(self.norm(x * self.scale * gain)) + extra["bias"]
        return {"logits": y, "steps": [y, None, y + 1], "x": x, "count": 3}


class Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def nested(batch: int = 2) -> Example:
    kwargs = {"unused": torch.ones(batch, 2), "extra": {"bias": models.normal(batch, 4)}}
    args = (models.normal(batch, 4), 2.0)
    return Example(models.randomize(Nested()), args, kwargs, BATCHED * 3)


def static(function: Any) -> Example:
    return Example(Function(function), (models.normal(2, 4),))


def test_names_are_the_arguments_and_the_keys_of_the_result(tmp_path: Path) -> None:
    file = to_onnx(nested(), tmp_path / "nested.onnx")
    assert file.inputs == ("x", "unused", "extra_bias")
    assert file.outputs == ("logits", "steps_0", "steps_2", "x_2")
    assert set(file.dynamic) == {*file.inputs, *file.outputs}
    assert all(dims == {0: "batch"} for dims in file.dynamic.values())


def test_weights_keep_their_names(tmp_path: Path) -> None:
    file = to_onnx(nested(), tmp_path / "nested.onnx", optimize=False)
    names = {tensor.name for tensor in onnx.load(file).graph.initializer}
    assert {"scale", "norm.weight", "norm.running_var"} <= names


def test_only_named_dimensions_vary(tmp_path: Path) -> None:
    model, args, kwargs = models.build("many_inputs", torch.float32)
    program = Example(model, args, kwargs, ({0: "batch"}, {0: "batch"}, {0: "batch"}))
    assert set(to_onnx(program, tmp_path / "a.onnx").dynamic["pair_0"].values()) == {"batch"}
    assert to_onnx(Example(model, args, kwargs), tmp_path / "b.onnx").dynamic == {}


def test_a_batch_of_one_stays_dynamic(tmp_path: Path) -> None:
    program = nested(batch=1)
    file = to_onnx(program, tmp_path / "one.onnx")
    assert file.dynamic["x"] == {0: "batch"}
    assert check(file, program).ok


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    program = nested()
    program.module.train()
    program.module.norm.eval()  # type: ignore[union-attr]
    modes = [module.training for module in program.module.modules()]
    state = {name: value.clone() for name, value in program.module.state_dict().items()}
    check(to_onnx(program, tmp_path / "a.onnx"), program)
    assert [module.training for module in program.module.modules()] == modes
    for name, value in program.module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_training_module_is_exported_for_inference(tmp_path: Path) -> None:
    program = nested()
    program.module.train()
    kinds = {node.op_type for node in onnx.load(to_onnx(program, tmp_path / "a.onnx")).graph.node}
    assert "Dropout" not in kinds


def test_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        to_onnx(nested(), tmp_path / "a.onnx")
        with pytest.raises(ExportError):
            to_onnx(static(lambda x: x if x.sum() > 0 else -x), tmp_path / "b.onnx")
    assert tuple(capfd.readouterr()) == ("", "")
    assert not caplog.records


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline = to_onnx(nested(), tmp_path / "inline.onnx")
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 8)
    program = Example(models.randomize(nn.Linear(64, 64)), (models.normal(2, 64),), {}, BATCHED)
    file = to_onnx(program, tmp_path / "large.onnx")
    names = {path.name for path in tmp_path.iterdir()} - {"inline.onnx", "large.onnx"}
    (name,) = names
    assert re.fullmatch(r"large\.onnx\.[0-9a-f]{16}\.data", name)
    assert inline.bytes == (tmp_path / "inline.onnx").stat().st_size
    assert file.bytes == sum(path.stat().st_size for path in tmp_path.glob("large*"))
    assert check(file, program).ok


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    assert to_onnx(nested(), tmp_path / "a.onnx", opset=opset).opset == opset


@pytest.mark.parametrize("opset", [16, 99])
def test_an_opset_out_of_reach_is_refused(tmp_path: Path, opset: int) -> None:
    program = Example(models.randomize(nn.BatchNorm1d(4)), (models.normal(2, 4),))
    program = Example(nn.Sequential(program.module, Function(lambda x: x.mean(1))), program.args)
    with pytest.raises(ExportError, match=f"opset {opset} was asked for"):
        to_onnx(program, tmp_path / "a.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x if x.sum() > 0 else -x, "data-dependent"),
        (lambda x: torch.linalg.svd(x)[1], "_linalg_svd"),
        (lambda x: x @ torch.ones(7, 3), "cannot be multiplied"),
        (lambda x: 3, "returns no tensor"),
    ],
    ids=["control flow", "operator", "shape", "result"],
)
def test_a_refusal_gives_the_reason_and_leaves_no_file(
    tmp_path: Path, function: Any, reason: str
) -> None:
    (tmp_path / "a.onnx").write_text("old")
    with pytest.raises(ExportError, match=reason) as caught:
        to_onnx(static(function), tmp_path / "a.onnx")
    assert len(str(caught.value)) < 700
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_fixed_batch_is_refused_when_it_should_vary(tmp_path: Path) -> None:
    program = Example(Function(lambda x: x.reshape(2, -1)), (models.normal(2, 4),), {}, BATCHED)
    with pytest.raises(ExportError, match=r"batch.*specialized it to be a constant \(2\)"):
        to_onnx(program, tmp_path / "a.onnx")


def test_bad_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteError, match="a part of the path is a file"):
        to_onnx(nested(), tmp_path / "file" / "a.onnx")
    with pytest.raises(WriteError, match="is a folder"):
        to_onnx(nested(), tmp_path)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        (BATCHED, "describes 1 tensors, the example inputs hold 3"),
        (({9: "batch"}, {}, {}), "shape is"),
        (({0: "n"}, {1: "n"}, {0: "m"}), "'n' is 2 in one input and 6"),
    ],
)
def test_dynamic_must_fit_the_inputs(tmp_path: Path, dynamic: Any, message: str) -> None:
    model, args, kwargs = models.build("many_inputs", torch.float32)
    with pytest.raises(ExportError, match=message):
        to_onnx(Example(model, args, kwargs, dynamic), tmp_path / "a.onnx")


def test_inputs_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no tensor"):
        to_onnx(Example(nn.Identity(), (3,)), tmp_path / "a.onnx")


def test_meta_weights_are_refused(tmp_path: Path) -> None:
    program = Example(nn.Linear(4, 2, device="meta"), (torch.ones(2, 4),))
    with pytest.raises(ExportError, match="meta device"):
        to_onnx(program, tmp_path / "a.onnx")


@pytest.mark.gpu
def test_a_module_on_the_gpu_stays_there(tmp_path: Path) -> None:
    module = nn.Linear(4, 2).cuda().eval()
    program = Example(module, (torch.ones(2, 4, device="cuda"),), {}, BATCHED)
    assert check(to_onnx(program, tmp_path / "a.onnx"), program).ok
    assert module.weight.is_cuda


def test_names_never_collide() -> None:
    names = unique_names(["a", "a", "a_2", "b"], taken={"b"})
    assert names == ("a", "a_2", "a_2_2", "b_2")


@pytest.mark.parametrize("name", ["projected_residual", "many_inputs", "tied_language_model"])
def test_a_captured_model_exports_and_agrees(tmp_path: Path, name: str) -> None:
    model, args, kwargs = models.build(name, torch.float32)
    program = capture(model, args, kwargs)
    assert check(to_onnx(program, tmp_path / "a.onnx"), program).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_exports_and_agrees(tmp_path: Path, name: str) -> None:
    model, args, kwargs = models.build(name, torch.float32)
    count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs)))
    program = Example(model, args, kwargs, BATCHED * count)
    assert check(to_onnx(program, tmp_path / "a.onnx"), program).ok
