"""What a saved program holds: no values of inputs, digests of all, and what is in training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fx
from fxcompress.edit.plan import Pattern
from fxcompress.errors import LoadError
from fxcompress.io.inputs import Drawn
from fxcompress.passes import NMSparsity
from fxcompress.program import Program
from models import MODELS, tensors
from programs import program

SUFFIXES = ("a.fxc", "a")
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64),
    *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
)


def leaves(found: Program) -> list[Tensor]:
    return tensors((found.args, dict(found.kwargs)))


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_program_computes_the_same_and_has_inputs_of_its_own(
    name: str, tmp_path: Path
) -> None:
    before = program(name)
    before.save(tmp_path / "a.fxc")
    after = fx.load(tmp_path / "a.fxc")
    assert after.dynamic == before.dynamic
    assert pytree.tree_structure(after.args) == pytree.tree_structure(before.args)
    for mine, theirs in zip(leaves(after), leaves(before), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert mine.min() == theirs.min()
        assert mine.max() == theirs.max()
        assert not mine.is_floating_point() or not torch.equal(mine, theirs)
    for args, kwargs in ((before.args, before.kwargs), (after.args, after.kwargs)):
        for mine, theirs in zip(
            tensors(after(*args, **kwargs)), tensors(before(*args, **kwargs)), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_the_values_of_inputs_are_stored_only_when_asked(tmp_path: Path) -> None:
    args = (torch.full((2, 5), 0.1234567),)
    found = fx.compile(nn.Linear(5, 3), (args[0] + torch.arange(5) * 0.1,))
    secret = found.args[0][0, 1:4].numpy().tobytes()
    found.save(tmp_path / "a.fxc")
    assert secret not in (tmp_path / "a.fxc").read_bytes()
    found.save(tmp_path / "b.fxc", inputs=True)
    assert secret in (tmp_path / "b.fxc").read_bytes()
    assert torch.equal(fx.load(tmp_path / "b.fxc").args[0], found.args[0])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 9))
def test_drawn_inputs_have_the_range_of_those_seen(
    dtype: torch.dtype, shape: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = (torch.randn(shape, generator=generator, dtype=torch.float64) * 5).to(dtype)
    seen = Drawn.of(value, seed)
    drawn = seen.draw()
    assert (drawn.shape, drawn.dtype) == (value.shape, dtype)
    assert torch.equal(drawn, seen.draw())
    assert Drawn.of(drawn, seed) == seen or value.numel() == 1


def test_masks_are_drawn_so_that_something_comes_through() -> None:
    causal = torch.full((4, 4), float("-inf")).triu(1)
    assert torch.equal(Drawn.of(causal, 0).draw(), torch.zeros(4, 4))
    assert Drawn.of(torch.tensor([True, True, False]), 0).draw().all()
    assert Drawn.of(torch.full((3,), torch.finfo().min), 0).draw().eq(torch.finfo().min).all()


def test_inputs_too_large_to_draw_take_no_memory() -> None:
    drawn = Drawn((2**40, 3), torch.float32, 0.0, 1.0, 0).draw()
    assert drawn.shape == (2**40, 3)
    assert drawn.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_flipped_bit_is_found(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / suffix
    program("padded_residual").save(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    drawn = random.Random(0)
    for _ in range(60):
        file = drawn.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        bad[drawn.randrange(len(bad))] ^= 1 << drawn.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(LoadError):
            fx.load(path)
        file.write_bytes(good)
    fx.load(path)


def sparse(trainable: bool) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    return fx.compile(net, (x,), passes=[NMSparsity(trainable=trainable)])


def same_masks(first: Program, second: Program) -> bool:
    return first.masks.keys() == second.masks.keys() and all(
        torch.equal(zeros.mask, second.masks[name].mask)
        and zeros.pattern == second.masks[name].pattern
        for name, zeros in first.masks.items()
    )


def test_masks_are_known_before_and_after_they_are_folded() -> None:
    folded, training = sparse(False), sparse(True)
    assert same_masks(training, folded)
    assert same_masks(training.finalize(), folded)
    assert training.sparsity == {"0.weight": 0.5, "2.weight": 0.5}
    assert training.report.sparse == folded.report.sparse
    assert {zeros.pattern for zeros in training.masks.values()} == {Pattern(2, 4, 1)}
    for name, zeros in training.finalize().masks.items():
        assert not training.finalize().module.state_dict()[name][~zeros.mask].any()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_in_training_is_saved_as_it_is(suffix: str, tmp_path: Path) -> None:
    before = sparse(True)
    before.module.train()
    before.save(tmp_path / suffix)
    after = fx.load(tmp_path / suffix)
    assert after.module.state_dict().keys() == before.module.state_dict().keys()
    assert after.module.training
    assert same_masks(after, before)
    x = torch.randn(5, 8, dtype=torch.float64)
    assert torch.equal(after(x), before(x))
    after(x).square().sum().backward()
    weight = after.module.get_parameter("0.weight")
    assert weight.grad is not None
    assert not weight.grad[~after.masks["0.weight"].mask].any()
    assert weight.detach()[~after.masks["0.weight"].mask].any()  # dense beneath its mask
    assert torch.equal(after.finalize()(x), before.finalize()(x))


def test_a_later_pass_does_not_lose_a_mask_in_training() -> None:
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    first = NMSparsity(trainable=True, include="0.weight")
    found = fx.compile(net, (x,), passes=[first, NMSparsity(include="2.weight")])
    assert found.sparsity == {"0.weight": 0.5, "2.weight": 0.5}
