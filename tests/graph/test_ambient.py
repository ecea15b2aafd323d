"""Results do not depend on the state of torch around a call, and on no other thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import capture
from fxcompress.passes import (
    Folding,
    LeastSquaresPruning,
    MagnitudePruning,
    RandomPruning,
    TaylorPruning,
)
from fxcompress.task import Task
from models import randomize


class Net(nn.Module):
    """Makes tensors in its forward without saying where or of what dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(mean) + torch.arange(4) * torch.ones(4)  # type: ignore[no-any-return]


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "device": lambda: torch.device("meta"),
    "set_default_device": default_device,
    "set_default_dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
TASK = Task([(X, torch.tensor([0, 3]))] * 2, loss=nn.functional.cross_entropy)


MODEL = randomize(Net())


def program() -> fx.Program:
    return fx.compile(MODEL, (X,), passes=[RandomPruning(ratio=0.5)], task=TASK)


def _loaded(given: fx.Program, folder: Path) -> fx.Program:
    return fx.load(folder / "given.fxc")


def _saved(given: fx.Program, folder: Path) -> fx.Program:
    given.save(folder / "new.fxc")
    return fx.load(folder / "new.fxc")


def _onnx(given: fx.Program, folder: Path) -> bytes:
    return fx.export.to_onnx(given, folder / "new.onnx").path.read_bytes()


def _apply(given: fx.Program, folder: Path) -> fx.Program:
    return fx.apply(given, MagnitudePruning(ratio=0.5))


def _scan(given: fx.Program, folder: Path) -> str:
    return str(fx.sensitivity(given, RandomPruning(ratio=0.5), ratios=(0.5,)))


ENTRIES: dict[str, Callable[[fx.Program, Path], object]] = {
    "compile": lambda given, folder: program(),
    "taylor": lambda given, folder: fx.apply(given, TaylorPruning(ratio=0.5)),
    "least squares": lambda given, folder: fx.apply(given, LeastSquaresPruning(ratio=0.5)),
    "folding": lambda given, folder: fx.apply(given, Folding(ratio=0.5)),
    "apply": _apply,
    "analysis": lambda given, folder: [str(g) for g in replace(given).groups],
    "capture": lambda given, folder: canonicalize(capture(MODEL, (X,)).module),
    "load": _loaded,
    "save": _saved,
    "write_back": lambda given, folder: given.write_back(MODEL),
    "finalize": lambda given, folder: given.finalize(),
    "to_onnx": _onnx,
    "check": lambda given, folder: str(fx.export.check(folder / "given.onnx", given)),
    "sensitivity": _scan,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[fx.Program, Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("ambient")
    made = program()
    made.save(folder / "given.fxc")
    fx.export.to_onnx(made, folder / "given.onnx")
    return made, folder, {}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_surrounds_an_entry_changes_nothing(
    context: str, entry: str, given: tuple[fx.Program, Path, dict[str, object]]
) -> None:
    made, folder, expected = given
    if entry not in expected:
        torch.manual_seed(0)
        expected[entry] = ENTRIES[entry](made, folder)
    torch.manual_seed(0)
    with CONTEXTS[context]():
        before = _state()
        found = ENTRIES[entry](made, folder)
        assert _state() == before
    _same(found, expected[entry])


def _state() -> tuple[object, ...]:
    return (
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


def _same(found: object, expected: object) -> None:
    if isinstance(found, fx.Program):
        assert isinstance(expected, fx.Program)
        assert found.kept.keys() == expected.kept.keys()
        found, expected = found.module, expected.module
    if not isinstance(found, nn.Module):
        assert found == expected
        return
    assert isinstance(expected, nn.Module)
    if isinstance(found, torch.fx.GraphModule):
        assert found.code == expected.code
    ours, theirs = found.state_dict(keep_vars=True), expected.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert not value.is_inference(), name
        assert (value.dtype, value.device) == (theirs[name].dtype, theirs[name].device), name
        assert torch.equal(value, theirs[name]), name
        assert value.requires_grad == theirs[name].requires_grad, name
    twin = copy.deepcopy(found)
    twin(X).sum().backward()
    grads = [p.grad for p in twin.parameters() if p.requires_grad]
    assert all(isinstance(grad, Tensor) for grad in grads)


def test_a_model_made_in_inference_mode_trains_when_captured() -> None:
    with torch.inference_mode():
        model, x = randomize(Net()), X.clone()
    made = fx.compile(model, (x,), passes=[RandomPruning(ratio=0.5)])
    _same(made, fx.compile(MODEL, (X,), passes=[RandomPruning(ratio=0.5)]))
    _same(made.write_back(model), made.write_back(MODEL))
