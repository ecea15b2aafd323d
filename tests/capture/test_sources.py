"""Exported programs, files and graph modules are captured too; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comparisons import assert_same
from fxcompress.capture import Captured, capture
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from models import build
from nets_captured import Deciding


def _exported(training: bool) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train(training)
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (torch.randn(3, 4),), dynamic_shapes=shapes)


def _saved(program: torch.export.ExportedProgram, folder: Path) -> Path:
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["program", "file", "str"])
def test_exported_programs_bring_their_inputs(how: str, training: bool, tmp_path: Path) -> None:
    program = _exported(training)
    path = _saved(program, tmp_path)
    model: Mapping[str, Any] = {"program": program, "file": path, "str": str(path)}
    captured: Captured = capture(model[how])
    assert captured.dynamic == ({0: "batch"},)
    x = torch.randn(5, 4)
    expected = _exported(False).module()(x)
    assert_same(captured.module(x), expected)
    captured.module.train()
    assert not torch.equal(captured.module(x), expected)


def test_graph_modules_of_all_kinds_are_captured() -> None:
    x = torch.randn(3, 4)
    exported, traced = _exported(False).module(), torch.fx.symbolic_trace(nn.Linear(4, 2))
    for module in (exported, traced):
        captured = capture(module, (x,))
        assert isinstance(captured.module, CapturedModule)
        assert_same(captured.module(x), module(x))


def test_a_capture_is_captured_again_and_keeps_its_mode() -> None:
    model, args, kwargs = build("reused_module")
    once = capture(model, args, kwargs).module.train()
    twice = capture(once, args, kwargs).module
    assert once.training
    assert_same(twice(*args, **kwargs), model(*args, **kwargs))


def _not_a_number() -> nn.Module:
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight[1, 2] = float("nan")
        linear.bias[0] = float("inf")
    return nn.Sequential(linear)


X = torch.ones(2, 4)
REFUSALS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "control flow": (
        Deciding,
        (X,),
        r"Deciding with .*\n(.*\n)*.*nets_captured.py.*\n.*torch.where",
    ),
    "wrong shape": (lambda: nn.Linear(5, 4), (X,), r"Linear with inputs \(args\[0\]: \[2, 4\]"),
    "no inputs": (lambda: nn.Linear(4, 4), (), r"no example inputs.*e\.g\."),
    "no tensor": (lambda: nn.Linear(4, 4), (3,), r"no example inputs"),
    "a bare tensor": (lambda: nn.Linear(4, 4), X, r"tuple.*Tensor.*\(x,\)"),
    "other dtype": (lambda: nn.Linear(4, 4), (X.double(),), r"args\[0\] is.*float64.*float32"),
    "other device": (lambda: nn.Linear(4, 4), (X.to("meta"),), r"args\[0\] is meta.*cpu"),
    "not finite": (_not_a_number, (X,), r"0\.(weight|bias) .*1 value.* NaN or infinite"),
    "lazy": (lambda: nn.LazyLinear(4), (X,), r"weight has no shape yet.*once"),
    "a class": (lambda: nn.Linear, (X,), r"the class Linear; call it"),
    "a list": (lambda: [nn.Linear(4, 4)], (X,), r"a list; give a torch.nn.Module"),
    "no file": (lambda: "missing.pt2", (), r"no file missing.pt2"),
    "no program": (lambda: __file__, (), r"test_sources.py is not an exported program"),
}


@pytest.mark.parametrize(("make", "args", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_where_and_what_to_do(
    make: Callable[[], Any], args: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(make(), args)
    assert capfd.readouterr().err == ""


def test_a_refused_model_is_left_in_its_mode() -> None:
    model = Deciding().train()
    with pytest.raises(CaptureError):
        capture(model, (X,))
    assert model.training
