"""Files say how they were made, and nothing of the machine they were made on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import fxcompress as fx
from fxcompress.export import Example, check, to_onnx
from fxcompress.export.onnx.write import describe
from fxcompress.graph.parameters import state_digest
from fxcompress.passes import MagnitudePruning
from fxcompress.report.curves import Curves
from models import build
from writers import large

REPOSITORY = Path(__file__).parents[2]
LOCAL = ('File "', ".py", "site-packages", str(REPOSITORY), str(Path.home()) + "/", os.getcwd())
"""What stack traces and paths of this machine hold."""
NETS = ("conv_chain", "padded_residual", "tied_language_model", "many_inputs", "reused_module")


def compiled(name: str) -> fx.Program:
    model, args, kwargs = build(name, torch.float32)
    return fx.compile(model, args, kwargs, passes=[MagnitudePruning(ratio=0.3)])


def assert_clean(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for file in files:
        found = [words for words in LOCAL if words.encode() in file.read_bytes()]
        assert not found, f"{file.name} holds {found}"


@pytest.mark.parametrize("name", NETS)
def test_no_file_holds_a_path_or_a_stack_trace(name: str, tmp_path: Path) -> None:
    program = compiled(name)
    program.save(tmp_path / "a.fxc")
    program.save(tmp_path / "a")
    to_onnx(program, tmp_path / "a.onnx")
    with large():
        to_onnx(program, tmp_path / "b.onnx", optimize=False)
    program.report.to_html(tmp_path / "a.html")
    (tmp_path / "a.json").write_text(program.report.to_json())
    for kind in ("svg", "png", "pdf"):
        program.draw(tmp_path / f"a.{kind}")
        Curves("x", "y", {"a": ((0.0, 1.0), (0.0, 1.0))}).plot(tmp_path / f"b.{kind}")
    assert_clean(tmp_path)


@pytest.mark.parametrize("kind", ["fxc", "onnx", "html", "svg", "png", "pdf"])
def test_the_same_program_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    program = compiled("conv_chain")
    program.report.to_json()
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{kind}"
        if kind == "fxc":
            program.save(path)
        elif kind == "onnx":
            to_onnx(program, path)
        elif kind == "html":
            program.report.to_html(path)
        else:
            program.draw(path)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def told(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_an_onnx_file_tells_recipe_parent_and_sizes(tmp_path: Path) -> None:
    model, args, kwargs = build("conv_chain", torch.float32)
    dense = state_digest(model)
    program = fx.compile(model, args, kwargs, passes=[MagnitudePruning(ratio=0.3)])
    program = fx.apply(program, MagnitudePruning(ratio=0.2))
    for value in program.module.parameters():
        value.data.mul_(1.5)  # as training would
    program.save(tmp_path / "a.fxc")
    for one in (program, fx.load(tmp_path / "a.fxc")):
        file = to_onnx(one, tmp_path / "a.onnx")
        made = told(tmp_path / "a.onnx")
        assert dict(file.metadata) == dict(describe(file).metadata) == made
        assert made["fxcompress.version"] == fx.__version__
        assert json.loads(made["fxcompress.recipe"]) == list(program.history)
        assert made["fxcompress.parent"] == dense
        for name in ("params", "flops", "macs", "bytes"):
            change = getattr(program.report, name)
            assert json.loads(made[f"fxcompress.{name}"]) == vars(change)
        assert check(file, one).ok


def test_before_any_pass_the_parent_is_the_program_itself(tmp_path: Path) -> None:
    model, args, kwargs = build("mlp", torch.float32)
    program = fx.compile(model, args, kwargs)
    to_onnx(program, tmp_path / "a.onnx")
    assert told(tmp_path / "a.onnx")["fxcompress.parent"] == state_digest(model)
    assert json.loads(told(tmp_path / "a.onnx")["fxcompress.recipe"]) == []


def test_a_model_that_was_not_compiled_has_a_version_only(tmp_path: Path) -> None:
    to_onnx(Example(nn.Linear(4, 2), (torch.ones(2, 4),)), tmp_path / "a.onnx")
    assert told(tmp_path / "a.onnx") == {"fxcompress.version": fx.__version__}


def test_the_digest_knows_names_shapes_dtypes_and_every_value() -> None:
    def digest(**tensors: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return state_digest(module)

    value = torch.arange(6.0).reshape(2, 3)
    others = (
        digest(b=value),
        digest(a=value.reshape(3, 2)),
        digest(a=value.double()),
        digest(a=value + torch.tensor([[0, 0, 0], [0, 0, 1e-6]])),
        digest(a=-value),
        digest(a=value, b=torch.tensor(1)),
        digest(a=torch.zeros(0)),
        digest(a=value.to(torch.complex64)),
        digest(a=value.to(torch.bfloat16)),
    )
    assert len({digest(a=value), *others}) == len(others) + 1
    assert digest(a=value.t().contiguous().t()) == digest(a=value)  # layout is no value
    assert digest(a=torch.ones(1, device="meta")) == ""
