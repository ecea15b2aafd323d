"""Weights of half precision stay what they are through passes, files and the user's own class; so
does the device.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fx
from models import build, tensors
from selection import zero_masked

HALVES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What rounding may amount to over a few layers: 11 and 8 bits of mantissa."""
NAMES = ("projected_residual", "multi_query_attention")
"""Convolutions with BatchNorm, and attention."""


def half_of(name: str, dtype: torch.dtype, dims: str | None = None) -> tuple[nn.Module, fx.Program]:
    """A model in `dtype`, and its program with half of its parameters gone."""
    model, args, kwargs = build(name, dtype)
    method = fx.passes.RandomPruning(ratio=0.5, dims=dims)
    return model, fx.compile(model, args, kwargs, passes=[method])


def results(module: nn.Module | fx.Program, program: fx.Program) -> list[Tensor]:
    return tensors(module(*program.args, **program.kwargs))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_and_is_exact_up_to_its_rounding(
    name: str, dtype: torch.dtype
) -> None:
    model, program = half_of(name, dtype)
    assert program.report.verification is not None
    assert program.report.verification.ok
    assert program.cost().params < 0.6 * sum(p.numel() for p in model.parameters())
    given = {key: value.dtype for key, value in model.state_dict().items()}
    assert {key: value.dtype for key, value in program.module.state_dict().items()} == given
    (found,) = results(program, program)
    assert found.dtype == dtype
    (expected,) = _in_double(model, program)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=HALVES[dtype] * scale)


def _in_double(model: nn.Module, program: fx.Program) -> list[Tensor]:
    """What the same weights give in double precision, with zeros for units that are gone."""
    reference = zero_masked(copy.deepcopy(model).double(), program)
    args = pytree.tree_map_only(Tensor, Tensor.double, program.args)
    return tensors(reference(*args))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_comes_back_bit_for_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    _, program = half_of(name, dtype)
    program.save(tmp_path / "half.fxc")
    loaded = fx.load(tmp_path / "half.fxc")
    mine, theirs = program.module.state_dict(), loaded.module.state_dict()
    assert [*mine] == [*theirs]
    for key, value in mine.items():
        assert theirs[key].dtype == value.dtype
        assert torch.equal(theirs[key], value)
    (found,), (expected,) = (results(one, program) for one in (loaded, program))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_written_back(name: str, dtype: torch.dtype) -> None:
    # The attention's own code names the sizes of heads, so they stay.
    dims = "residual" if name == "multi_query_attention" else None
    model, program = half_of(name, dtype, dims)
    result = program.write_back(model)
    assert sum(p.numel() for p in result.parameters()) == program.cost().params
    assert {value.dtype for value in result.parameters()} == {dtype}
    (found,), (expected,) = (results(one, program) for one in (result, program))
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*NAMES, "token_classifier", "fused_attention"])
def test_constants_follow_the_device(name: str) -> None:
    """Compiled where the model lies, a program runs there, and elsewhere after a move."""
    model, args, kwargs = build(name)
    model, (args, kwargs) = model.cuda(), _moved((args, kwargs), "cuda")
    program = fx.compile(model, args, kwargs, passes=[fx.passes.RandomPruning(ratio=0.5)])
    assert {value.device.type for value in program.module.state_dict().values()} == {"cuda"}
    (found,) = results(program, program)
    assert found.is_cuda
    elsewhere = copy.deepcopy(program.module).cpu()
    args, kwargs = _moved((args, kwargs), "cpu")
    (expected,) = tensors(elsewhere(*args, **kwargs))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-10)  # double precision


def _moved(values: object, device: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return pytree.tree_map_only(Tensor, lambda value: value.to(device), values)  # type: ignore[no-any-return]
