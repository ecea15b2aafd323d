"""Nothing that only looks changes state: tensors and random generators stay bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.compiler import apply
from fxcompress.graph.state import isolated, written_tensors
from fxcompress.program import Program
from fxcompress.sensitivity import sensitivity
from fxcompress.stats import observe
from fxcompress.stats.gradients import gradients
from fxcompress.task import Task
from fxcompress.train import evaluate
from fxcompress.verify.draws import refuse_unequal_draws
from models import MODELS, cast
from nets_stateful import DRAWING, STATEFUL, WRITING
from selection import RandomSelection

nets = pytest.mark.parametrize("name", STATEFUL)
everything = pytest.mark.parametrize("name", [*STATEFUL, *MODELS])


def built(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, args, kwargs = (STATEFUL | MODELS)[name]()
    args, kwargs = cast((args, kwargs), torch.float64)
    return model.double(), args, kwargs


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Every bit of the modules' states, and of the global generator, is the same after."""
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in modules]
    modes = [m.training for m in modules]
    drawn = torch.get_rng_state()
    yield
    for module, state, mode in zip(modules, before, modes, strict=True):
        assert module.training is mode
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), drawn)


def task_of(program: Program) -> Task:
    """Three batches like the example, with labels."""
    inputs = program.kwargs or program.args
    batches = [(inputs if program.kwargs else tuple(inputs), torch.tensor([0, 1]))] * 3
    return Task(batches, loss=_loss, metric=lambda out, _: float(out.double().mean()))


def _loss(out: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(len(labels), -1), labels)


@everything
def test_compile_and_its_proofs_change_nothing(name: str) -> None:
    model, args, kwargs = built(name)
    with unchanged(model):
        program = fx.compile(model, args, kwargs)
    with unchanged(model, program.module):
        small = apply(program, RandomSelection())
    assert small.report.verification is not None
    assert small.report.verification.ok
    with unchanged(model, program.module, small.module):
        again = apply(small, RandomSelection(1))
    assert again.report.verification is not None


@nets
def test_what_looks_at_data_changes_nothing(name: str) -> None:
    model, args, kwargs = built(name)
    program = fx.compile(model, args, kwargs, task=None)
    task = task_of(program)
    program = fx.compile(model, args, kwargs, task=task)
    head = next(n.name for n in program.module.graph.nodes if "linear" in n.name)
    with unchanged(model, program.module):
        evaluate(program.module, task)
        evaluate(model, task)
    with unchanged(program.module):
        sensitivity(program, fx.passes.MagnitudePruning(ratio=0.5), ratios=(0.5,))
    with unchanged(program.module):
        if name in DRAWING:
            with pytest.raises(fx.PlanError, match="two runs"):
                observe(program, {head: lambda value: None})
        else:
            observe(program, {head: lambda value: None})
            gradients(program, ["head.weight"])


@pytest.mark.parametrize("name", WRITING)
def test_every_call_in_isolation_starts_from_the_same_state(name: str) -> None:
    model, args, kwargs = built(name)
    module = fx.compile(model, args, kwargs).module
    alone = isolated(module)
    with unchanged(module):
        first, second = alone(*args, **kwargs), alone(*args, **kwargs)
    assert torch.equal(first, second)
    assert torch.equal(first, model(*args, **kwargs))
    written = written_tensors(module)
    changed = {n for n, t in built(name)[0].state_dict().items() if n in written}
    assert changed == written
    before = {n: t.clone() for n, t in module.state_dict().items()}
    module(*args, **kwargs)
    moved = {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == written


@pytest.mark.parametrize("name", MODELS)
def test_a_net_that_writes_nothing_is_not_copied(name: str) -> None:
    model, args, kwargs = built(name)
    module = fx.compile(model, args, kwargs).module
    assert written_tensors(module) == frozenset()
    assert isolated(module) is module


@nets
def test_the_check_of_a_file_changes_nothing(name: str, tmp_path: Any) -> None:
    if name == "bounded_table":
        pytest.skip("onnx has no operator that shortens rows")
    model, args, kwargs = built(name)
    program = fx.compile(model.float(), cast(args, torch.float32), kwargs)
    with unchanged(program.module):
        path = f"{tmp_path}/net.onnx"
        fx.export.to_onnx(program, path)
        result = fx.export.check(path, program, raise_on_failure=False)
        fx.export.benchmark({"net": program}, warmup=0, rounds=2)
    # The two draw otherwise; and torch's exporter writes batch norm in evaluation only.
    assert result.ok or name in (*DRAWING, "batch_statistics")


@pytest.mark.parametrize("name", DRAWING)
def test_a_net_that_draws_is_proved_by_the_same_draws(name: str) -> None:
    model, args, kwargs = built(name)
    program = fx.compile(model, args, kwargs, passes=[RandomSelection()])
    check = program.report.verification
    assert check is not None
    assert check.kind == "zero-masked"
    assert check.max_relative_error is not None
    assert check.max_relative_error <= 1e-10  # float64: sums in another order


def test_a_net_whose_draws_cannot_be_lined_up_says_so() -> None:
    model, args, kwargs = built("random_noise")
    program = fx.compile(model, args, kwargs)
    small = apply(program, RandomSelection(), verify=False)
    with pytest.raises(fx.VerificationError, match="draws random numbers") as error:
        refuse_unequal_draws(program.module, small.module, args, kwargs)
    assert "'rand_like'" in str(error.value)
    assert "axis rule" not in str(error.value)
    refuse_unequal_draws(program.module, program.module, args, kwargs)


@pytest.mark.parametrize("name", WRITING)
def test_written_back_nothing_has_moved(name: str) -> None:
    model, args, kwargs = built(name)
    program = fx.compile(model, args, kwargs)
    with unchanged(model, program.module):
        try:
            same = program.write_back(model)
        except fx.WriteBackError:
            return
    for key, value in same.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
