"""Compiles in threads give what they give one after the other; no error becomes a fixed batch."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.capture import capture
from fxcompress.errors import CaptureError
from fxcompress.passes import RandomPruning
from models import build

NETS = ("mlp", "conv_chain", "fused_attention", "swiglu", "padded_residual", "many_inputs")
TIMES = 2


def _compiled(name: str) -> fx.Program:
    model, args, kwargs = build(name)
    half = RandomPruning(ratio=0.5, exact_only=False)
    return fx.compile(model, args, kwargs, passes=[half], verify=False)


def _written(name: str, folder: Path) -> list[object]:
    model, args, kwargs = build(name, torch.float32)
    program = fx.compile(model, args, kwargs)
    graph = onnx.load(fx.export.to_onnx(program, folder / f"{name}.onnx").path).graph
    weights = {w.name: onnx.numpy_helper.to_array(w).tobytes() for w in graph.initializer}
    nodes = [(node.op_type, list(node.input), str(node.attribute)) for node in graph.node]
    return [weights, nodes, str(graph.input), str(graph.output)]


def _equal(found: fx.Program, expected: fx.Program) -> None:
    assert found.dynamic == expected.dynamic
    assert found.module.code == expected.module.code
    theirs = expected.module.state_dict()
    assert found.module.state_dict().keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in found.module.state_dict().items())
    assert str(found.report.groups) == str(expected.report.groups)


@pytest.fixture
def restless() -> Any:
    """Threads take turns so often that they meet."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_compiles_in_threads_are_those_one_after_the_other() -> None:
    expected = {name: _compiled(name) for name in NETS}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(_compiled, NETS * TIMES))
    for name, program in zip(NETS * TIMES, found, strict=True):
        _equal(program, expected[name])


@pytest.mark.usefixtures("restless")
def test_threads_may_compile_one_model() -> None:
    model, args, kwargs = build("conv_chain")
    model.train()
    expected = fx.compile(model, args, kwargs)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fx.compile(model, args, kwargs), range(6)))
    for program in found:
        _equal(program, expected)
    assert all(part.training for part in model.modules())


@pytest.mark.usefixtures("restless")
def test_files_and_models_written_in_threads_are_those_one_after_the_other(tmp_path: Path) -> None:
    names = ("mlp", "conv_chain", "swiglu")
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export")}
    fast, stderr = torch.backends.mha.get_fastpath_enabled(), sys.stderr
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    expected = [_written(name, tmp_path / "one") for name in names]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda name: _written(name, tmp_path / "two"), names)) == expected
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert sys.stderr is stderr


@pytest.mark.usefixtures("restless")
def test_models_are_written_back_in_threads() -> None:
    model, args, kwargs = build("conv_chain")
    program = fx.compile(model, args, kwargs, passes=[RandomPruning(ratio=0.5)])
    expected = program.write_back(model).state_dict()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: program.write_back(model), range(3)))
    for written in found:
        assert all(torch.equal(v, expected[k]) for k, v in written.state_dict().items())
        assert [part.training for part in written.modules()] == [
            part.training for part in model.modules()
        ]


# ---- a fixed batch is for constraints on the batch alone


class Raises(nn.Module):
    """Fails by its own fault, on the calls that it is told to."""

    def __init__(self, error: Exception, when: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.error, self.when = error, when

    def forward(self, x: Tensor) -> Tensor:
        if self.when(x):
            raise self.error
        return self.linear(x)  # type: ignore[no-any-return]


ERRORS = [RuntimeError("of its own"), ValueError("of its own"), KeyError("of its own")]
ERRORS += [AssertionError("of its own"), ZeroDivisionError("of its own"), OSError("of its own")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("calls", [1, 2, 99])
def test_an_error_of_the_model_is_told_as_it_is(error: Exception, batch: int, calls: int) -> None:
    number = itertools.count(1)
    model = Raises(error, lambda _: next(number) <= calls)
    with pytest.raises(CaptureError, match="of its own"):
        capture(model, (torch.randn(batch, 4),))


def test_a_model_for_one_batch_size_is_captured_for_that_size() -> None:
    model = Raises(ValueError("only one"), lambda x: x.shape[0] != 1)
    assert capture(model, (torch.randn(1, 4),)).dynamic == ({},)


class Histogram(nn.Module):
    """Torch knows the shapes of its result by running it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.histogram(x, 4, range=(-1.0, 1.0)).hist


@pytest.mark.parametrize("batch", [1, 3])
def test_an_operator_traced_at_fixed_sizes_alone_fixes_the_batch(
    batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(batch, 4)
    captured = capture(Histogram(), (x,))
    assert captured.dynamic == ({},)
    assert torch.equal(captured.module(x), Histogram()(x))
    assert "one batch size only" in caplog.text
    with pytest.raises(CaptureError, match=r"histogram(.*\n)*.*register_fake"):
        capture(Histogram(), (torch.randn(3, 4),), dynamic={0: {0: "n"}})


def test_an_operator_that_torch_cannot_trace_at_all_is_refused() -> None:
    @torch.library.custom_op("threadtest::untold", mutates_args=())
    def untold(x: Tensor) -> Tensor:
        return x.clone()

    class Untold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return untold(x)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="untold"):
        capture(Untold(), (torch.randn(3, 4),))


class Counts(nn.Module):
    """Needs the batch as a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        table = np.zeros((x.shape[0], 4), dtype=np.float32)
        return self.linear(x) + torch.from_numpy(table)  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_must_be_a_number_is_fixed(batch: int) -> None:
    captured = capture(Counts(), (torch.randn(batch, 4),))
    assert captured.dynamic == ({},)
