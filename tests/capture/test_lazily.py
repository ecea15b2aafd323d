"""A model whose values lie in a checkpoint is compressed as it is with its values in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

import fxcompress as fx
from checkpoints import LITERAL, reloaded, stored
from fxcompress.capture import checkpoint
from fxcompress.capture.checkpoint import Entry
from fxcompress.graph.parameters import in_place_of
from fxcompress.passes import (
    Folding,
    FPGMPruning,
    GroupNormPruning,
    LAMPPruning,
    LeastSquaresPruning,
    MagnitudePruning,
    ProjectivePruning,
    RandomPruning,
    TaylorPruning,
    WandaPruning,
)
from models import MODELS, build

NETS = sorted(MODELS.keys() - {LITERAL})
HALF = MagnitudePruning(ratio=0.5)


def _without_values(model: nn.Module) -> nn.Module:
    """The model on the meta device, but for what no checkpoint holds."""
    state = model.state_dict(keep_vars=True).values()
    return copy.deepcopy(model, {id(t): in_place_of(t, t.detach().to("meta")) for t in state})


def _assert_same(found: fx.Program, expected: fx.Program) -> None:
    """Bit for bit, but for sizes that only a comparison with values can admit."""
    state, wanted = found.module.state_dict(), expected.module.state_dict()
    assert list(state) == list(wanted)
    others, constants = dict(found.module.named_buffers()), dict(expected.module.named_buffers())
    assert others.keys() == constants.keys()
    for name, value in {**wanted, **constants}.items():
        own = {**state, **others}[name]
        assert own.dtype == value.dtype
        assert own.stride() == value.stride()
        assert own.equal(value)
    assert found.module.code == expected.module.code
    assert found.parent == expected.parent != ""
    assert found.history == expected.history
    assert found.report.params == expected.report.params
    assert found.report.flops == expected.report.flops
    assert _indices(found) == _indices(expected)
    pairs = zip(_outputs(found), _outputs(expected), strict=True)
    assert all(first.equal(second) for first, second in pairs)


def _indices(program: fx.Program) -> dict[str, list[object]]:
    return {
        name: [None if index is None else index.tolist() for index in axes]
        for name, axes in program.kept.items()
    }


def _outputs(program: fx.Program) -> list[Tensor]:
    leaves = pytree.tree_leaves(program(*program.args, **program.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", NETS)
def test_compressed_lazily_is_compressed_in_memory(name: str, tmp_path: Path) -> None:
    model, args, kwargs = build(name)
    weights = stored(model, tmp_path / "weights", parts=3)
    expected = fx.compile(model, args, kwargs, passes=[HALF])
    found = fx.compile(model, args, kwargs, passes=[HALF], weights=weights)
    assert all(tensor.is_meta for tensor in found.module.parameters())
    assert found.report.checks == expected.report.checks
    _assert_same(reloaded(found, tmp_path / "a.fxc"), reloaded(expected, tmp_path / "b.fxc"))


@pytest.mark.parametrize("name", ["rotary_grouped_attention", "tied_language_model", "conv_chain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_from_the_meta_device_in_the_models_own_type(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, args, kwargs = build(name, dtype)
    weights = stored(model, tmp_path / "weights")
    expected = fx.compile(model, args, kwargs, passes=[HALF])
    model = _without_values(model)
    found = fx.compile(model, args, kwargs, passes=[HALF], weights=weights)
    found.save(tmp_path / "a")
    _assert_same(fx.load(tmp_path / "a"), reloaded(expected, tmp_path / "b"))


@pytest.mark.parametrize(
    "one",
    [
        RandomPruning(ratio=0.5),
        GroupNormPruning(ratio=0.5),
        FPGMPruning(ratio=0.5),
        LAMPPruning(ratio=0.5),
        MagnitudePruning(budget=fx.Budget(params=0.6, allocation="global")),
        Folding(ratio=0.5),
        ProjectivePruning(ratio=0.5),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("name", ["mlp", "swiglu"])
def test_every_pass_that_looks_at_values_alone(
    one: fx.program.Pass, name: str, tmp_path: Path
) -> None:
    model, args, kwargs = build(name)
    weights = stored(model, tmp_path / "weights")
    expected = fx.compile(model, args, kwargs, passes=[HALF, one])
    found = fx.compile(model, args, kwargs, passes=[HALF, one], weights=weights)
    assert found.report.checks == expected.report.checks
    _assert_same(reloaded(found, tmp_path / "a.fxc"), reloaded(expected, tmp_path / "b.fxc"))


@pytest.mark.parametrize("one", [WandaPruning(ratio=0.5), LeastSquaresPruning(ratio=0.5)])
def test_passes_that_run_the_model_read_it_as_they_go(one: fx.program.Pass, tmp_path: Path) -> None:
    model, args, kwargs = build("mlp")
    weights = stored(model, tmp_path / "weights")
    expected = fx.compile(model, args, kwargs, passes=[one], task=[args])
    found = fx.compile(model, args, kwargs, passes=[one], task=[args], weights=weights)
    _assert_same(reloaded(found, tmp_path / "a.fxc"), reloaded(expected, tmp_path / "b.fxc"))


def test_a_pass_that_needs_gradients_says_to_load_the_model(tmp_path: Path) -> None:
    model, args, kwargs = build("mlp")
    task = fx.Task(data=[(args, torch.zeros(2))], loss=lambda out, _: out.sum())
    weights = stored(model, tmp_path / "weights")
    one = TaylorPruning(ratio=0.5)
    with pytest.raises(fx.PlanError, match=r"gradients.*fxcompress\.load"):
        fx.compile(model, args, kwargs, passes=[one], task=task, weights=weights)


def test_a_program_with_lazy_values_is_called_like_any_other(tmp_path: Path) -> None:
    model, args, kwargs = build("rotary_grouped_attention")
    program = fx.compile(model, args, kwargs, weights=stored(model, tmp_path / "weights"))
    expected = model(*args, **kwargs)
    assert torch.allclose(program(*args, **kwargs), expected, rtol=1e-12, atol=1e-12)
    inputs = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), args)
    assert program(*inputs, **kwargs).is_meta
    assert program.finalize()(*args).equal(program(*args))


def test_a_graph_that_writes_to_its_buffers_starts_from_the_stored_state(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    weights = stored(model, tmp_path / "weights")
    program = fx.compile(model, (torch.randn(4, 3),), weights=weights)
    before = program(torch.ones(4, 3))
    program.module.train()
    trained = program(torch.randn(4, 3))
    assert trained.isfinite().all()
    program.module.eval()
    assert program(torch.ones(4, 3)).equal(before)


def test_export_and_write_back_say_to_save_and_load(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    weights = stored(model, tmp_path / "weights")
    program = fx.compile(model, (torch.ones(2, 3),), weights=weights)
    with pytest.raises(fx.ExportError, match=r"fxcompress\.load"):
        fx.export.to_onnx(program, tmp_path / "a.onnx")
    with pytest.raises(fx.WriteBackError, match=r"fxcompress\.load"):
        program.write_back(model)
    with pytest.raises(fx.CaptureError, match=r"fxcompress\.load"):
        fx.compile(program.module, (torch.ones(2, 3),))


def test_no_pass_at_all_writes_the_weights_as_they_are(tmp_path: Path) -> None:
    model, args, kwargs = build("dense_concat")
    weights = stored(model, tmp_path / "weights", parts=2)
    found = reloaded(fx.compile(model, args, kwargs, weights=weights), tmp_path / "a")
    for name, value in model.state_dict().items():
        assert found.module.state_dict()[name].equal(value)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of all that has been read and still lives, at every read."""
    held: list[tuple[StorageWeakRef, int]] = []
    seen: list[int] = []
    plain = Entry.read

    def read(self: Entry, kept: tuple[Tensor | None, ...]) -> Tensor:
        value = plain(self, kept)
        held[:] = [(one, size) for one, size in held if not one.expired()]
        storage = value.untyped_storage()
        held.append((StorageWeakRef(storage), storage.nbytes()))
        seen.append(sum(size for _, size in held))
        return value

    monkeypatch.setattr(Entry, "read", read)
    return seen  # type: ignore[return-value]


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, live: list[int]) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(12)))
    weights = stored(model, tmp_path / "weights")
    program = fx.compile(
        model.to("meta"), (torch.ones(2, 64),), passes=[HALF, HALF], weights=weights
    )
    program.save(tmp_path / "a.fxc")
    assert len(live) > 4 * 12
    assert max(live) <= 2 * 4 * 64 * 64


def test_what_is_cut_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.randn(37, 5, 3)
    save_file({"a": value, "b": torch.ones(()), "c": torch.ones(0, 2)}, tmp_path / "m.safetensors")
    monkeypatch.setattr(checkpoint, "_PIECE", 4 * 5 * 3 * 4)  # four rows
    found = checkpoint.open_checkpoint(tmp_path)
    rows, columns = torch.tensor([36, 2, 3, 0, 17, 5]), torch.tensor([4, 1])
    assert found["a"].read((None, None, None)).equal(value)
    assert found["a"].read((rows, None, None)).equal(value[rows])
    assert found["a"].read((rows, columns, None)).equal(value[rows][:, columns])
    assert found["b"].read(()).equal(torch.ones(()))
    assert found["c"].read((None, None)).shape == (0, 2)
