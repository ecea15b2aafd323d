"""A program answers as the model or refuses: it never computes another number.

torch.export fixes what the model branched on at its example. Whatever comes later, the program and
the model agree exactly or the call ends with `InputError`.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.errors import CaptureError, InputError
from models import normal
from nets_branching import (
    DTYPES,
    KINDS,
    ONES,
    VALUES,
    Bounded,
    Masked,
    OnBatch,
    OnBoth,
    OnDtype,
    OnLength,
    OnOne,
    OnValue,
    Related,
    Structured,
)

FEW = settings(max_examples=12, deadline=None)


def agree_or_refuse(model: nn.Module, program: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether the program took the inputs; what it gave is the model's answer to the bit."""
    try:
        found = program(*args, **kwargs)
    except InputError:
        return False
    expected = model(*args, **kwargs)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    return True


def sized(*shape: int) -> Tensor:
    return normal(*shape).double()


@given(st.sampled_from(KINDS), st.integers(2, 6), st.integers(1, 9))
@FEW
def test_a_branch_on_the_batch(kind: str, edge: int, batch: int) -> None:
    model = OnBatch(kind, edge).double()
    program = fx.compile(model, (sized(batch, 4),))
    taken = [agree_or_refuse(model, program, sized(size, 4)) for size in range(1, 3 * edge + 10)]
    assert taken[batch - 1], "the example itself is refused"


@given(st.integers(2, 6), st.integers(1, 9), st.booleans())
@example(3, 2, True)
@FEW
def test_a_branch_on_the_length(edge: int, length: int, free: bool) -> None:
    model = OnLength(edge).double()
    dynamic: Any = {0: {0: "batch", 1: "length"}} if free and length > 1 else "batch"
    if dynamic != "batch" and (length, edge) == (2, 3):
        # Of the sizes from two on, which is where torch takes an axis for free, one is left.
        with pytest.raises(CaptureError, match=r"size\(\)\[1\] .* constant \(2\)\.\n.*fewer free"):
            fx.compile(model, (sized(2, length, 4),), dynamic=dynamic)
        return
    program = fx.compile(model, (sized(2, length, 4),), dynamic=dynamic)
    taken = {
        size: agree_or_refuse(model, program, sized(batch, size, 4))
        for batch in (1, 2, 5)
        for size in range(1, 12)
    }
    assert taken[length]
    if dynamic != "batch":
        assert sum(taken.values()) > 1
    else:
        assert [size for size, good in taken.items() if good] == [length]


@given(st.integers(2, 30), st.integers(2, 5), st.integers(2, 5))
@FEW
def test_a_branch_on_two_sizes_at_once(edge: int, batch: int, length: int) -> None:
    model = OnBoth(edge).double()
    example = sized(batch, length, 4)
    program = fx.compile(model, (example,), dynamic={0: {0: "batch", 1: "length"}})
    assert agree_or_refuse(model, program, example)
    for one in range(1, 8):
        for other in range(1, 8):
            agree_or_refuse(model, program, sized(one, other, 4))


@pytest.mark.parametrize("captured", VALUES, ids=repr)
def test_values_that_are_no_tensors(captured: Any) -> None:
    model, x = OnValue().double(), sized(3, 4)
    program = fx.compile(model, (x,), {"choice": captured})
    for given_ in VALUES:
        same = type(given_) is type(captured) and repr(given_) == repr(captured)
        if same:
            found = [program(x, given_), program(x, choice=given_), program(choice=given_, x=x)]
            expected = model(x, given_).nan_to_num()
            assert all(torch.equal(one.nan_to_num(), expected) for one in found)
        else:
            assert not agree_or_refuse(model, program, x, given_)
            assert not agree_or_refuse(model, program, x, choice=given_)
    with pytest.raises(InputError, match="'choice' is missing"):
        program(x)


@pytest.mark.parametrize("captured", DTYPES)
def test_a_branch_on_the_dtype(captured: torch.dtype) -> None:
    model = OnDtype()
    program = fx.compile(model, (normal(3, 4).to(captured),))
    for dtype in DTYPES:
        taken = agree_or_refuse(model, program, (normal(3, 4) * 3).to(dtype))
        assert taken is (dtype is captured)


@pytest.mark.parametrize("kind", ONES)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_batch_of_one(kind: str, batch: int) -> None:
    """An example of one is repeated for torch.export; the answer to one stays the model's."""
    model = OnOne(kind).double()
    program = fx.compile(model, (sized(batch, 4),))
    taken = {size: agree_or_refuse(model, program, sized(size, 4)) for size in (1, 2, 3, 5)}
    assert taken[batch]
    assert all(taken.values()) is (kind == "plain")


def test_an_axis_of_one_that_has_to_be_free_is_refused_where_one_is_special() -> None:
    with pytest.raises(CaptureError, match="computes otherwise at"):
        fx.compile(OnOne("branch"), (normal(1, 4),), dynamic={0: {0: "n"}})


@given(st.integers(1, 6), st.integers(1, 12))
@FEW
def test_sizes_that_are_related(first: int, second: int) -> None:
    model = Related().double()
    axes = {"args[0]": {0: "short"}, "args[1]": {0: "long"}}
    program = fx.compile(model, (sized(3, 4), sized(6, 4)), dynamic=axes)
    assert agree_or_refuse(model, program, sized(first, 4), sized(2 * first, 4))
    taken = None
    if second != 2 * first:
        with pytest.raises(InputError, match="long"):
            taken = program(sized(first, 4), sized(second, 4))
    assert taken is None


def test_structures_with_more_or_fewer_parts() -> None:
    model, x = Structured().double(), sized(3, 4)
    program = fx.compile(model, ({"x": x, "more": [x]},))
    assert agree_or_refuse(model, program, {"more": [x], "x": x})
    others: list[dict[str, Any]] = [
        {"x": x},
        {"x": x, "more": []},
        {"x": x, "more": [x, x]},
        {"x": x, "more": [x], "scale": 2},
    ]
    for other in others:
        assert not agree_or_refuse(model, program, other)


def _saved(program: fx.Program, path: Path) -> Any:
    program.save(path / "p.fxc")
    return fx.load(path / "p.fxc")


WAYS: dict[str, Callable[[fx.Program, Path], Any]] = {
    "module": lambda program, _: program.module,
    "forward": lambda program, _: program.module.forward,
    "deepcopy": lambda program, _: copy.deepcopy(program.module),
    "train and back": lambda program, _: program.module.train().eval(),
    "values": lambda program, _: program.with_values({}),
    "finalized": lambda program, _: program.finalize(),
    "pickle": lambda program, _: pickle.loads(pickle.dumps(program.module)),
    "saved": _saved,
    "saved twice": lambda program, path: _saved(_saved(program, path), path),
    "compiled again": lambda program, _: fx.compile(program.module, program.args),
    "inside another": lambda program, _: fx.compile(nn.Sequential(program.module), program.args),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")
def test_the_interface_survives(way: str, tmp_path: Path) -> None:
    model = OnBatch("from", 6).double()
    again = WAYS[way](fx.compile(model, (sized(3, 4),)), tmp_path)
    for size in range(1, 6):
        assert agree_or_refuse(model, again, sized(size, 4))
    with pytest.raises(InputError, match="1 to 5"):
        again(sized(7, 4))


def test_a_pruned_program_keeps_its_interface() -> None:
    model = OnBatch("from", 6).double()
    half = fx.passes.MagnitudePruning(ratio=0.5)
    program = fx.compile(model, (sized(3, 4),), passes=[half])
    assert program(sized(5, 4)).shape == (5, 4)
    with pytest.raises(InputError, match="1 to 5"):
        program(sized(6, 4))


def test_a_program_moved_to_another_dtype_takes_that() -> None:
    program = fx.compile(OnDtype(), (normal(3, 4),))
    program.module.double()
    assert program(sized(3, 4)).dtype == torch.float64
    with pytest.raises(InputError, match="captured: float64"):
        program(normal(3, 4))


def test_the_message_says_what_was_given_captured_and_what_frees_it() -> None:
    program = fx.compile(OnLength(9), (normal(2, 6, 4),))
    with pytest.raises(InputError) as caught:
        program(normal(2, 1, 4))
    text = str(caught.value)
    assert "'x' is float32 of shape [2, 1, 4]" in text
    assert "captured: float32 of shape [batch, 6, 4]" in text
    axes = {"args[0]": {0: "batch", 1: "size_1"}}
    assert f"dynamic={axes}" in text
    freed = fx.compile(OnLength(9), (normal(2, 6, 4),), dynamic=axes)
    assert freed(normal(2, 4, 4)).shape == (2, 4)


@pytest.mark.parametrize("dynamic", ["batch", None])
def test_the_door_stays_out_of_the_way_of_tracing(dynamic: Any) -> None:
    program = fx.compile(OnOne("plain"), (normal(3, 4),), dynamic=dynamic)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    again = torch.export.export(program.module, (normal(3, 4),), dynamic_shapes=shapes)
    assert again.module()(normal(7, 4)).shape == (7, 4)
    traced = torch.fx.symbolic_trace(program.module)
    assert traced(normal(3, 4)).shape == (3, 4)


def test_what_a_model_states_of_values_is_still_checked() -> None:
    half = fx.passes.MagnitudePruning(ratio=0.5)
    program: Any = fx.compile(
        Bounded().double(), (torch.full((5, 4), 0.1).double(),), passes=[half]
    )
    assert program(torch.full((5, 4), 0.15).double()).shape == (3, 4)
    with pytest.raises(RuntimeError, match="<= 3"):
        program(torch.full((5, 4), 0.25).double())


def test_the_report_says_how_far_each_free_axis_goes() -> None:
    program = fx.compile(OnBatch("from", 6), (normal(3, 4),))
    assert program.report.ranges == {"batch": "1 to 5"}
    assert "batch: 1 to 5" in str(program)
    program = fx.compile(OnBatch("multiple", 3), (normal(3, 4),))
    assert program.report.relations == ("batch % 3 == 0",)
    assert "batch % 3 == 0" in str(program)
    program = fx.compile(OnOne("branch"), (normal(3, 4),))
    assert "2 or more (the model computes otherwise at batch 1)" in str(program)
    single = fx.compile(OnOne("branch"), (normal(1, 4),))
    assert single.report.static == "the model computes otherwise at batch 1"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_mask_may_be_one_together_with_its_batch(batch: int) -> None:
    model = Masked().double()
    program = fx.compile(model, (sized(batch, 4), sized(batch, 4)))
    assert program.dynamic == ({0: "batch"}, {0: "batch"})
    for size in (1, 2, 5):
        assert agree_or_refuse(model, program, sized(size, 4), sized(size, 4))
