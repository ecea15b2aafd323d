"""A runtime is one file: what runs, checks, times and blames finds it by its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import models
from fxcompress.errors import ExportError, VerificationError
from fxcompress.export import Example, benchmark, check, to_onnx
from fxcompress.export.runtimes.protocol import (
    Array,
    Input,
    Runtime,
    Session,
    Source,
    made_up,
    register,
    runtime_for,
    runtimes,
    unregister,
)

BATCHED = ({0: "batch"},)


class Reference(Runtime):
    """ONNX's own evaluator in numpy."""

    name = "reference"
    package = "onnx"

    def version(self) -> str:
        return str(onnx.__version__)

    def takes(self, source: Source) -> bool:
        return isinstance(source, str | os.PathLike)

    @contextmanager
    def open(self, source: Source, *, threads: int = 1, optimize: bool = True) -> Iterator[Session]:
        assert isinstance(source, str | os.PathLike)
        yield Evaluated(ReferenceEvaluator(os.fspath(source)))


class Evaluated(Session):
    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self.evaluator = evaluator

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(name, torch.float32, (None, 8)) for name in self.evaluator.input_names)

    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], Any]:
        names = self.evaluator.input_names
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return lambda: self.evaluator.run(None, feed)

    def named(self, result: Any) -> dict[str, Array]:
        return dict(zip(self.evaluator.output_names, result, strict=True))


@pytest.fixture(autouse=True)
def reference() -> Iterator[Runtime]:
    yield register(Reference())
    unregister("reference")


def program(seed: int = 0) -> Example:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return Example(models.randomize(net, seed), (models.normal(2, 8),), {}, BATCHED)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(program(), tmp_path_factory.mktemp("runtimes") / "net.onnx").path


def test_a_file_is_checked_in_it(file: Path) -> None:
    result = check(file, program(), runtime="reference")
    assert result.ok
    assert "agrees with the program in reference" in str(result)
    with pytest.raises(VerificationError, match="differs from the program in reference"):
        check(file, program(seed=1), runtime="reference")


def test_what_it_gets_wrong_is_blamed_on_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Reference.open

    def spoiled(self: Reference, source: Source, **options: Any) -> Any:
        return opened(self, source if not options.get("optimize", True) else other, **options)

    other = to_onnx(program(seed=1), file.with_name("other.onnx")).path
    monkeypatch.setattr(Reference, "open", spoiled)
    result = check(file, program(), runtime="reference", raise_on_failure=False)
    assert str(result.blame).startswith("reference's optimiser")


def test_a_file_is_timed_in_every_runtime_that_is_named(file: Path) -> None:
    timed = benchmark([file], rounds=2, runtimes=["onnxruntime", "reference"])
    assert [(one.name, one.runtime) for one in timed.timings] == [
        ("net, onnxruntime", "onnxruntime"),
        ("net, reference", "reference"),
    ]
    assert timed.machine.versions["reference"] == onnx.__version__
    mixed = benchmark({"a": program(), "b": file}, rounds=2, runtimes=["torch", "reference"])
    assert [one.runtime for one in mixed.timings] == ["torch", "reference"]
    assert [one.name for one in mixed.timings] == ["a", "b"]


def test_the_first_that_takes_a_source_runs_it(file: Path) -> None:
    assert runtime_for(file).name == "onnxruntime"
    assert runtime_for(program()).name == "torch"
    assert list(runtimes())[:2] == ["torch", "onnxruntime"]
    assert all(each.package for each in runtimes().values())


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "reference"])
def test_sessions_of_all_runtimes_give_the_same(name: str, file: Path) -> None:
    source = program() if name == "torch" else file
    tensors = [models.normal(3, 8, seed=5)]
    with runtime_for(source, name).open(source) as session:
        (found,) = session.run(tensors).values()
        assert [one.shape for one in session.inputs] == [(None, 8)]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), program().module(*tensors))


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_a_profile_names_operators(name: str, file: Path) -> None:
    source = program() if name == "torch" else file
    with runtime_for(source, name).open(source) as session:
        found = session.profile([models.normal(3, 8)], rounds=3)
    assert any("addmm" in each or "Gemm" in each or "linear" in each for each in found)
    assert all(ms >= 0 for ms in found.values())
    assert sum(found.values()) > 0


def test_one_that_cannot_profile_says_so(file: Path) -> None:
    with Reference().open(file) as session, pytest.raises(ExportError, match="does not tell"):
        session.profile([models.normal(3, 8)])


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("onnxruntim", "a.onnx", "no runtime is called 'onnxruntim' .did you mean 'onnxruntime'"),
        ("torch", "a.onnx", "torch does not run files; .* onnxruntime"),
        ("onnxruntime", nn.Identity(), "onnxruntime does not run a Identity; .* torch"),
    ],
)
def test_what_a_runtime_does_not_run_is_refused(name: str, source: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        runtime_for(source, name)
    with pytest.raises(ExportError, match=message):
        benchmark({"a": source}, runtimes=[name], inputs=[torch.ones(1)])


def test_inputs_of_a_type_that_torch_lacks_cannot_be_made_up() -> None:
    with pytest.raises(ExportError, match="cannot make up input 'x'"):
        made_up([Input("x", None, (2,))], 0)
