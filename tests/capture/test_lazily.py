"""A model whose values lie in a checkpoint is compressed as it is with its values in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

import fxcompress as fx
from fxcompress.capture import checkpoint
from fxcompress.capture.checkpoint import INDEX, Entry
from fxcompress.graph.parameters import in_place_of
from fxcompress.passes import (
    Folding,
    FPGMPruning,
    GroupNormPruning,
    LAMPPruning,
    MagnitudePruning,
    ProjectivePruning,
    RandomPruning,
)
from models import MODELS, build

LITERAL = "multi_query_attention"
"""It reads heads by an index that its forward writes out."""
NETS = sorted(MODELS.keys() - {LITERAL})
HALF = MagnitudePruning(ratio=0.5)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Each tensor under its first name, as Hugging Face saves them."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    first = {name: t for name, t in state.items() if names.setdefault(id(t), name) == name}
    return {name: tensor.detach().contiguous() for name, tensor in first.items()}


def _stored(model: nn.Module, folder: Path, parts: int = 1) -> Path:
    """A checkpoint of several files with an index, or of one."""
    folder.mkdir()
    state = _state(model)
    where = {name: f"model-{index % parts}.safetensors" for index, name in enumerate(state)}
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, folder / file)
    if parts > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


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


def _saved(program: fx.Program, path: Path) -> fx.Program:
    program.save(path)
    return fx.load(path)


@pytest.mark.parametrize("name", NETS)
def test_compressed_lazily_is_compressed_in_memory(name: str, tmp_path: Path) -> None:
    model, args, kwargs = build(name)
    weights = _stored(model, tmp_path / "weights", parts=3)
    expected = fx.compile(model, args, kwargs, passes=[HALF])
    found = fx.compile(model, args, kwargs, passes=[HALF], weights=weights)
    assert all(tensor.is_meta for tensor in found.module.parameters())
    _assert_same(_saved(found, tmp_path / "a.fxc"), _saved(expected, tmp_path / "b.fxc"))


@pytest.mark.parametrize("name", ["rotary_grouped_attention", "tied_language_model", "conv_chain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_from_the_meta_device_in_the_models_own_type(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, args, kwargs = build(name, dtype)
    weights = _stored(model, tmp_path / "weights")
    expected = fx.compile(model, args, kwargs, passes=[HALF])
    model = _without_values(model)
    found = fx.compile(model, args, kwargs, passes=[HALF], weights=weights)
    found.save(tmp_path / "a")
    _assert_same(fx.load(tmp_path / "a"), _saved(expected, tmp_path / "b"))


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
    weights = _stored(model, tmp_path / "weights")
    expected = fx.compile(model, args, kwargs, passes=[HALF, one], verify=False)
    found = fx.compile(model, args, kwargs, passes=[HALF, one], weights=weights)
    _assert_same(_saved(found, tmp_path / "a.fxc"), _saved(expected, tmp_path / "b.fxc"))


def test_no_pass_at_all_writes_the_weights_as_they_are(tmp_path: Path) -> None:
    model, args, kwargs = build("dense_concat")
    weights = _stored(model, tmp_path / "weights", parts=2)
    found = _saved(fx.compile(model, args, kwargs, weights=weights), tmp_path / "a")
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
    weights = _stored(model, tmp_path / "weights")
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


# ---- what is refused


def _compiled(weights: Path, model: nn.Module | None = None) -> fx.Program:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) if model is None else model
    return fx.compile(model, (torch.ones(2, 3),), weights=weights)


def test_a_checkpoint_that_is_not_the_models_is_refused_by_name(tmp_path: Path) -> None:
    state = _state(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    state["extra"] = state.pop("0.bias")
    state["0.weight"] = state["0.weight"].double()
    state["2.weight"] = torch.ones(2, 5)
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(fx.CaptureError) as raised:
        _compiled(tmp_path / "m.safetensors")
    said = str(raised.value)
    assert "the checkpoint lacks '0.bias'" in said
    assert "the model lacks 'extra'" in said
    assert "'0.weight' is [4, 3] torch.float64 in the checkpoint and [4, 3] torch.float32" in said
    assert "'2.weight' is [2, 5]" in said


def test_tied_tensors_with_two_values_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    _compiled(tmp_path / "m.safetensors", model)
    state["1.weight"][2, 2] += 1
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(fx.CaptureError, match=r"'0.weight' and '1.weight' are one tensor"):
        _compiled(tmp_path / "m.safetensors", model)


class Scaled(nn.Module):
    """A buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * self.scale
        return out


def test_a_buffer_that_no_checkpoint_holds_keeps_the_models_value(tmp_path: Path) -> None:
    model = Scaled()
    weights = _stored(model, tmp_path / "weights")
    program = _saved(_compiled(weights, model), tmp_path / "a.fxc")
    assert program(torch.ones(2, 3)).equal(model(torch.ones(2, 3)))
    with pytest.raises(fx.CaptureError, match="'scale' of Scaled lie on the meta device"):
        _compiled(weights, model.to("meta"))


def test_a_number_that_the_forward_writes_out_is_lost(tmp_path: Path) -> None:
    model, args, kwargs = build(LITERAL)
    weights = _stored(model, tmp_path / "weights")
    with pytest.raises(fx.CaptureError, match="numbers that a forward writes out"):
        fx.compile(model, args, kwargs, weights=weights)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no .safetensors file"),
        ({"m.safetensors": b"not one"}, "damaged or no safetensors file"),
        ({INDEX: b"{}"}, "is damaged"),
        ({INDEX: b'{"weight_map": {"a": "../m.safetensors"}}'}, "no file in its folder"),
        ({INDEX: b'{"weight_map": {"a": "m.safetensors"}}'}, "damaged or no safetensors file"),
    ],
    ids=["nothing", "no safetensors", "empty index", "another folder", "missing file"],
)
def test_a_folder_without_a_checkpoint(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(fx.CaptureError, match=words):
        _compiled(tmp_path)


def test_two_files_with_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(fx.CaptureError, match="both have 'x'"):
        _compiled(tmp_path)


def test_inputs_need_values_and_weights_a_module(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    weights = _stored(model, tmp_path / "weights")
    with pytest.raises(fx.CaptureError, match="example inputs need values"):
        fx.compile(model.to("meta"), (torch.ones(2, 3, device="meta"),), weights=weights)
    program = torch.export.export(nn.Linear(3, 4), (torch.ones(2, 3),))
    with pytest.raises(fx.CaptureError, match="ExportedProgram"):
        fx.compile(program, weights=weights)


def test_a_file_that_changes_while_it_is_needed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    weights = _stored(model, tmp_path / "weights")
    program = _compiled(weights, model)
    save_file({"x": torch.ones(1)}, weights / "model-0.safetensors")
    with pytest.raises(fx.LoadError, match="has changed"):
        program.save(tmp_path / "a.fxc")
    assert not (tmp_path / "a.fxc").exists()
