from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import models
from fxcompress.errors import ExportError
from fxcompress.export import Example, OnnxFile, build_engine, parse, time_engine, to_onnx
from fxcompress.export.runtimes.tensorrt_library import TensorRt, load_library

BATCHED = ({0: "batch"},)


@pytest.fixture(scope="module")
def library() -> str:
    try:
        return str(load_library().__name__)
    except ExportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    model, args, kwargs = models.build("projected_residual", torch.float32)
    path = tmp_path_factory.mktemp("trt") / "residual.onnx"
    return to_onnx(Example(model, args, kwargs, BATCHED), path)


@pytest.mark.trt
def test_the_parser_takes_an_exported_residual_net(library: str, residual: OnnxFile) -> None:
    network = parse(residual)
    assert network.library == library
    assert network.layers > 0
    assert network.inputs == {"x": (-1, *models.IMAGE[1:])}
    assert set(network.outputs) == {"output"}


@pytest.mark.trt
@pytest.mark.parametrize("sparse", [False, True])
def test_an_engine_is_built_and_written(
    library: str, residual: OnnxFile, tmp_path: Path, sparse: bool
) -> None:
    engine = build_engine(residual, tmp_path / "a.engine", sparse=sparse)
    assert engine.bytes == (tmp_path / "a.engine").stat().st_size > 1000
    assert [shape[0] for shape in engine.shapes["x"]] == [1, 8, 32]
    assert [path.name for path in tmp_path.iterdir()] == ["a.engine"]
    assert json.loads(json.dumps(engine.to_dict()))["sparse"] is sparse


@pytest.mark.trt
def test_a_static_net_needs_no_profile(library: str, tmp_path: Path) -> None:
    program = Example(models.randomize(nn.Linear(8, 4)), (models.normal(2, 8),))
    engine = build_engine(to_onnx(program, tmp_path / "a.onnx"), tmp_path / "a.engine")
    assert engine.shapes == {}


@pytest.mark.trt
def test_shapes_choose_the_profile(library: str, residual: OnnxFile, tmp_path: Path) -> None:
    profile = tuple((size, *models.IMAGE[1:]) for size in (1, 2, 4))
    engine = build_engine(residual, tmp_path / "a.engine", shapes={"x": profile})  # type: ignore[dict-item]
    assert engine.shapes == {"x": profile}


@pytest.mark.trt
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": ((1,), (1,), (1,))}, r"shapes names \['y'\]"),
        ({"x": ((1, 3), (1, 3), (1, 3))}, "does not fit input 'x'"),
        ({"x": ((1, 3, 8, 7),) * 3}, "does not fit input 'x'"),
        ({"x": ((4, 3, 8, 6), (2, 3, 8, 6), (1, 3, 8, 6))}, "must grow"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    library: str, residual: OnnxFile, tmp_path: Path, shapes: dict[str, tuple[()]], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        build_engine(residual, tmp_path / "a.engine", shapes=shapes)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.trt
def test_other_varying_dimensions_must_be_given(library: str, tmp_path: Path) -> None:
    program = Example(
        models.randomize(nn.Linear(8, 4)),
        (models.normal(2, 5, 8),),
        {},
        ({0: "batch", 1: "time"},),
    )
    file = to_onnx(program, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="varies in more than its first dimension"):
        build_engine(file, tmp_path / "a.engine")
    profile = ((1, 1, 8), (2, 5, 8), (4, 9, 8))
    assert build_engine(file, tmp_path / "a.engine", shapes={"input": profile}).bytes


@pytest.mark.trt
def test_an_unknown_operator_is_named_with_its_node(library: str, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    node = helper.make_node("Mystery", ["x"], ["y"], name="odd", domain="acme")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    model = helper.make_model(helper.make_graph([node], "graph", [x], [y]), opset_imports=opsets)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"cannot parse .*node 'odd' \(Mystery\)"):
        parse(tmp_path / "a.onnx")


@pytest.mark.trt
def test_an_unknown_gpu_is_refused(library: str, residual: OnnxFile, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot build for compute capability 12345; it can for"):
        build_engine(residual, tmp_path / "a.engine", compute_capability=12345)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no ONNX file"):
        parse(tmp_path / "missing.onnx")


def test_without_either_library_the_packages_are_named(
    residual: OnnxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(ExportError, match=r"pip install 'fxcompress\[trt-rtx\]'.*tensorrt"):
        parse(residual)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_timing_without_a_gpu_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs an NVIDIA GPU"):
        time_engine(tmp_path / "a.engine")


@pytest.mark.gpu
@pytest.mark.trt
def test_an_engine_is_timed_between_events(
    library: str, residual: OnnxFile, tmp_path: Path
) -> None:
    if library == "tensorrt_rtx" and torch.cuda.get_device_capability() == (9, 0):
        pytest.skip("TensorRT-RTX has no kernels for data-centre GPUs of compute capability 9.0")
    timing = time_engine(build_engine(residual, tmp_path / "a.engine"), rounds=5, warmup=1)
    assert timing.shapes["x"] == (8, *models.IMAGE[1:])
    assert 0 < timing.latency.min <= timing.latency.p50 <= timing.latency.p90


def test_only_error_lines_of_the_log_are_told() -> None:
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
    trt = SimpleNamespace(
        ILogger=SimpleNamespace(Severity=severity), __name__="trt", __version__="1"
    )
    session = TensorRt(trt, [(1, "bad node "), (3, "chatter")], None)
    assert session.errors() == "bad node"
    assert TensorRt(trt, [], None).errors() == "the library gives no reason"
