"""Everything that writes a result, each with a way to tell that what is there is one, whole."""

from __future__ import annotations

import functools
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import onnx
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.cli.compress import _write_back
from fxcompress.explain.drawing import draw_overview
from fxcompress.export import build_engine, to_onnx
from fxcompress.export.onnx import write as exporter
from fxcompress.export.onnx.exportable import inference_module, inputs_of
from fxcompress.export.onnx.stamp import metadata_of
from fxcompress.export.runtimes import tensorrt
from fxcompress.files.figures import write_figure
from fxcompress.files.write import file_target, write_text
from fxcompress.report.curves import Curves

STEPS = 4
"""How many results there are; all numbers in the weights of one are its own."""
SIZE = 96
_LARGE = "torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD"


@dataclass(frozen=True)
class Writer:
    """A function that writes a result.

    Attributes:
        name: A file or folder name with the right ending.
        write: Writes the result of this number to a path; what is no writing is done before.
        read: The number of the result at a path; fails if that is not whole.
        folder: Whether the result is a folder.
        parts: Whether it has files beside it.
        repeats: Whether it replaces a result that is there.
        whole: Like `write`, by the public function, where that is slow.
    """

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], int]
    folder: bool = False
    parts: bool = False
    repeats: bool = True
    whole: Callable[[Path, int], object] | None = None


@functools.cache
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 3)).eval()


@functools.cache
def program(step: int) -> fx.Program:
    base = fx.compile(net(), (torch.randn(2, SIZE),))
    values = {k: torch.full_like(v, step) for k, v in base.module.state_dict().items()}
    named = replace(base, report=replace(base.report, model=f"step {step} of all"))
    return named.with_values(values)


@functools.cache
def converted(step: int) -> Any:
    inputs = inputs_of(program(step))
    with inference_module(program(step)) as module, exporter._quiet():
        return exporter._converted(exporter._traced(module, inputs), inputs, ["out"], 20, True)


def only(tensors: Iterator[Tensor]) -> int:
    """The number that all tensors hold."""
    (value,) = {number for tensor in tensors for number in tensor.unique().tolist()}
    return int(value)


def read_program(path: Path) -> int:
    loaded = fx.load(path)
    assert loaded.report.model == f"step {only(loaded.module.parameters())} of all"
    return only(loaded.module.parameters())


def read_onnx(path: Path) -> int:
    onnx.checker.check_model(path)
    model = onnx.load(path)
    weights = [torch.tensor(onnx.numpy_helper.to_array(w)) for w in model.graph.initializer]
    return only(weight for weight in weights if weight.is_floating_point())


def quick_onnx(path: Path, step: int) -> None:
    exporter._write(converted(step), file_target(path), metadata_of(program(step)))


@contextmanager
def large() -> Iterator[None]:
    """Weights of any size go beside an ONNX file."""
    with patch(_LARGE, 8):
        yield


def write_onnx(path: Path, step: int) -> None:
    to_onnx(program(step), path)


def write_large(path: Path, step: int) -> None:
    with large():
        to_onnx(program(step), path)


def quick_large(path: Path, step: int) -> None:
    with large():
        quick_onnx(path, step)


def write_html(path: Path, step: int) -> None:
    program(step).report.to_html(path)


def read_html(path: Path) -> int:
    text = path.read_text()
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>")
    return int(text.partition("<h1>step ")[2][0])


def draw(path: Path, step: int) -> None:
    draw_overview(program(0).groups, f"step {step} of all", path)


def plot(path: Path, step: int) -> None:
    Curves("x", f"step {step} of all", {"a": ((0.0, 1.0), (0.0, 1.0))}).plot(path)


@functools.cache
def figure(step: int) -> Figure:
    made = Figure(figsize=(1 + step, 1))
    made.text(0.5, 0.5, f"step {step} of all")
    return made


def quick_figure(path: Path, step: int) -> None:
    write_figure(figure(step), path)


def read_svg(path: Path) -> int:
    ET.fromstring(path.read_bytes())
    return int(path.read_text().partition("<!-- step ")[2][0])


def read_png(path: Path) -> int:
    """The number is in the width, which is 100 pixels an inch."""
    data = path.read_bytes()
    assert data.endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(data[16:20], "big") // 100 - 1


def read_pdf(path: Path) -> int:
    data = path.read_bytes()
    assert data.rstrip().endswith(b"%%EOF")
    return int(float(data.partition(b"/MediaBox [ 0 0 ")[2].split()[0]) / 72) - 1


def write_json(path: Path, step: int) -> None:
    write_text(path, json.dumps({"step": step, "more": [step] * 9999}))


def read_json(path: Path) -> int:
    return int(json.loads(path.read_text())["step"])


def write_engine(path: Path, step: int) -> None:
    """The builder of TensorRT needs a GPU: one that gives bytes stands for it."""
    plan = bytes([step]) * 99_999
    session = SimpleNamespace(
        trt=SimpleNamespace(__name__="trt", __version__="1"), title="trt", network=None, messages=[]
    )
    session.builder = SimpleNamespace(build_serialized_network=lambda *_: plan)
    fakes: dict[str, Any] = {"describe": None, "load_library": None, "parsed": session}
    fakes |= {"_profiles": {}, "_config": None}
    with ExitStack() as stack:
        for name, made in fakes.items():
            stack.enter_context(patch.object(tensorrt, name, lambda *_, made=made: made))
        build_engine("any.onnx", path)


def read_engine(path: Path) -> int:
    data = path.read_bytes()
    assert len(data) == 99_999
    return only(iter([torch.tensor(list(data))]))


class Pretrained(nn.Linear):
    """Saves itself as the models of Hugging Face do."""

    def save_pretrained(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps({"step": int(self.bias[0])}))
        save_file(self.state_dict(), path / "weights.safetensors")


def write_back(path: Path, step: int) -> None:
    smaller = Pretrained(3, 3)
    for value in smaller.parameters():
        value.data.fill_(step)
    compiled: Any = SimpleNamespace(write_back=lambda _: smaller)
    loaded: Any = SimpleNamespace(program=None, model=smaller, label="")
    _write_back(compiled, loaded, path)


def read_pretrained(path: Path) -> int:
    step = int(json.loads((path / "config.json").read_text())["step"])
    assert step == only(iter(load_file(path / "weights.safetensors").values()))
    return step


def save(path: Path, step: int) -> None:
    program(step).save(path)


WRITERS = {
    "one file": Writer("a.fxc", save, read_program),
    "safetensors": Writer("a.safetensors", save, read_program),
    "directory": Writer("a", save, read_program, folder=True),
    "onnx": Writer("a.onnx", quick_onnx, read_onnx, whole=write_onnx),
    "onnx and data": Writer("a.onnx", quick_large, read_onnx, parts=True, whole=write_large),
    "html": Writer("a.html", write_html, read_html),
    "drawing": Writer("a.svg", quick_figure, read_svg, whole=draw),
    "curves": Writer("a.svg", quick_figure, read_svg, whole=plot),
    "png": Writer("a.png", quick_figure, read_png),
    "pdf": Writer("a.pdf", quick_figure, read_pdf),
    "json": Writer("a.json", write_json, read_json),
    "engine": Writer("a.engine", write_engine, read_engine),
    "state dict": Writer(
        "a.safetensors", write_back, lambda p: only(iter(load_file(p).values()))
    ),
    "pretrained": Writer("a", write_back, read_pretrained, folder=True, repeats=False),
}  # fmt: skip
