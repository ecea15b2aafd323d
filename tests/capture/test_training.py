"""A captured model trains as the model does: the same losses, parameters, buffers and order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
import nets_training as nets
from fxcompress.capture import capture
from fxcompress.graph.parameters import find_tensor, names_of
from fxcompress.passes import RandomPruning
from models import MODELS, Example, build, normal, randomize, tensors

IMAGE = (3, 3, 6, 5)


def _entry(make: Callable[[], nn.Module], *shape: int) -> Callable[[], Example]:
    return lambda: (randomize(make()).double(), (normal(*shape).double(),), {})


OWN: dict[str, Callable[[], Example]] = {
    "momentum": _entry(lambda: nets.Norms(0.3), *IMAGE),
    "cumulative": _entry(lambda: nets.Norms(None), *IMAGE),
    "not affine": _entry(lambda: nets.Norms(None, affine=False), *IMAGE),
    "no statistics": _entry(lambda: nets.Norms(None, track_running_stats=False), *IMAGE),
    "frozen norm": _entry(nets.FrozenNorm, *IMAGE),
    "own norms": _entry(nets.OwnNorms, *IMAGE),
    "dropouts": _entry(nets.Dropouts, *IMAGE),
    "odd order": _entry(nets.OddOrder, *IMAGE),
}
NETS: dict[str, Callable[[], Example]] = {name: partial(build, name) for name in MODELS} | OWN


def _steps(module: nn.Module, example: Example, steps: int = 3) -> list[float]:
    """The losses of some steps of SGD, on the same data with the same generator."""
    _, args, kwargs = example
    module.train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        found = tensors(module(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
        loss = torch.stack([t.square().mean() for t in found if t.is_floating_point()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _state_equal(found: nn.Module, model: nn.Module) -> None:
    expected = model.state_dict()
    state = found.state_dict()
    assert list(state) == list(expected)
    for name, value in state.items():
        # Canonical forms may add in another order; float64 leaves rounding alone.
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", NETS)
def test_a_captured_model_trains_as_the_model_does(name: str) -> None:
    model, args, kwargs = example = NETS[name]()
    program = fx.compile(model, args, kwargs)
    found, expected = _steps(program.module, example), _steps(model, example)
    assert found == pytest.approx(expected, rel=1e-10)
    _state_equal(program.module, model)
    # What was learnt holds in evaluation too, and training can go on.
    with torch.no_grad():
        ours = tensors(program.module.eval()(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
        theirs = tensors(model.eval()(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert _steps(program.module, example, 1) == pytest.approx(_steps(model, example, 1), rel=1e-9)


@pytest.mark.parametrize("name", ["cumulative", "own norms", "frozen norm", "odd order"])
def test_a_loaded_program_trains_as_the_model_does(name: str, tmp_path: Path) -> None:
    model, args, kwargs = example = OWN[name]()
    fx.compile(model, args, kwargs).save(tmp_path / "a.fxc")
    module = fx.load(tmp_path / "a.fxc").module
    assert _steps(module, example) == pytest.approx(_steps(model, example), rel=1e-10)
    _state_equal(module, model)


@pytest.mark.parametrize("name", ["cumulative", "own norms"])
def test_a_program_saved_in_training_goes_on(name: str, tmp_path: Path) -> None:
    model, args, kwargs = example = OWN[name]()
    program = fx.compile(model, args, kwargs)
    _steps(program.module, example, 2)
    program.save(tmp_path / "a.fxc")
    module = fx.load(tmp_path / "a.fxc").module
    assert _steps(module, example) == _steps(program.module, example)
    _state_equal(module.eval(), program.module.eval())
    assert module.code == program.module.code


@pytest.mark.parametrize("name", ["cumulative", "momentum", "own norms", "dropouts"])
def test_a_smaller_program_trains_as_the_model_written_back(name: str) -> None:
    model, args, kwargs = example = OWN[name]()
    small = fx.compile(model, args, kwargs, passes=[RandomPruning(ratio=0.5)])
    written = small.write_back(model)
    assert _steps(small.module, example) == pytest.approx(_steps(written, example), rel=1e-10)
    _state_equal(small.module, written)


def _kinds(module: nn.Module) -> list[tuple[object, ...]]:
    return [
        (name, type(p), p.requires_grad, vars(p), p.is_contiguous(), p.stride()[-1] == 1)
        for name, p in module.named_parameters()
    ]


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_in_order_and_of_their_kind(name: str) -> None:
    model, args, kwargs = NETS[name]()
    module = fx.compile(model, args, kwargs).module
    assert _kinds(module) == _kinds(model)
    assert list(module.state_dict()) == list(model.state_dict())
    own = {name for name, _ in model.named_buffers()}
    assert [n for n, _ in module.named_buffers() if n in own] == [
        n for n, _ in model.named_buffers()
    ]


def test_parameters_stay_of_their_kind_through_passes_and_back(tmp_path: Path) -> None:
    model, args, kwargs = OWN["odd order"]()
    model.first.weight.group = "early"  # type: ignore[union-attr]
    small = fx.compile(model, args, kwargs, passes=[RandomPruning(ratio=0.5)])
    assert small.report.params.after < small.report.params.before
    assert _kinds(small.module) == _kinds(model)
    written = small.write_back(model)
    assert _kinds(written) == _kinds(model)
    small.save(tmp_path / "a.fxc")
    loaded = fx.load(tmp_path / "a.fxc").module
    for (name, ours), (other, theirs) in zip(
        loaded.named_parameters(), small.module.named_parameters(), strict=True
    ):
        assert (name, ours.stride(), ours.requires_grad) == (
            other,
            theirs.stride(),
            theirs.requires_grad,
        )


def test_an_optimizer_state_by_order_fits_the_program() -> None:
    model, args, kwargs = OWN["odd order"]()
    program = fx.compile(model, args, kwargs)

    def sgd(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    def run(module: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        module.train()
        optimizer.zero_grad()
        loss: Tensor = module(*args).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    theirs = sgd(model)
    run(model, theirs)
    ours = sgd(program.module)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    program.module.load_state_dict(model.state_dict())
    for _ in range(2):
        torch.testing.assert_close(run(program.module, ours), run(model, theirs))
    _state_equal(program.module, model)


def test_a_backward_of_the_models_own_is_told(caplog: pytest.LogCaptureFixture) -> None:
    program = fx.compile(randomize(nets.Rounds()), (normal(2, 4),))
    (note,) = program.report.training
    assert "StraightThrough" in note
    assert "nets_training.py" in note
    assert note in caplog.text
    assert "StraightThrough" in str(program.report)
    assert fx.report.Report.from_dict(program.report.to_dict()).training == (note,)


def test_a_norm_with_a_way_of_its_own_is_told() -> None:
    program = fx.compile(randomize(nets.Halving(4)), (normal(3, 4),))
    (note,) = program.report.training
    assert "statistics in a way of its own" in note


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_told_of_a_model_that_trains_as_its_graph(name: str) -> None:
    model, args, kwargs = NETS[name]()
    assert capture(model, args, kwargs).notes == ()


@pytest.mark.parametrize("name", ["tied_language_model", "conv_chain", "reused_module"])
def test_what_was_kept_is_told_by_every_name_that_there_is(name: str) -> None:
    model, args, kwargs = build(name)
    passes: list[fx.program.Pass] = [
        RandomPruning(ratio=0.4),
        fx.passes.FoldBatchNorm(),
        RandomPruning(ratio=0.3),
    ]
    program = fx.compile(model, args, kwargs, passes=passes[:1] if "conv" not in name else passes)
    names = names_of(program.module)
    assert program.kept.keys() <= names.keys()
    for key, axes in program.kept.items():
        sizes = find_tensor(program.module, key).shape  # type: ignore[union-attr]
        assert all(a is None or len(a) == n for a, n in zip(axes, sizes, strict=True))
        assert names[key] <= program.kept.keys()


def test_a_norm_that_cannot_be_tried_alone_is_said() -> None:
    """Its forward pass wants more than a batch, so no batch of ours can be given to it."""

    class Scaled(nn.BatchNorm1d):
        def forward(self, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
            return super().forward(x) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.Linear(4, 6), Scaled(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.up(x), 0.5)  # type: ignore[no-any-return]

    report = fx.compile(Net(), (torch.randn(3, 4),)).report
    assert any("norm: this norm could not be tried alone" in note for note in report.training)
