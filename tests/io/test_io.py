"""What is saved comes back bit for bit."""

from __future__ import annotations

import copy
import json
import operator
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from crafted import manifest_of, write_manifest
from fxcompress.capture import capture
from fxcompress.errors import FxCompressError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dynamic_dims, is_tensor, shape_of
from fxcompress.io import load_module, save_module, saveable
from models import MODELS, rebatch, tensors
from saved import SUFFIXES, captured, content, part


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_module_is_the_saved_one(name: str, tmp_path: Path) -> None:
    module, args, kwargs = captured(name)
    save_module(tmp_path / "a.fxc", module, {})
    loaded, _ = load_module(tmp_path / "a.fxc")

    for given in ((args, kwargs), rebatch((args, kwargs), 3)):
        for found, expected in zip(
            tensors(loaded(*given[0], **given[1])),
            tensors(module(*given[0], **given[1])),
            strict=True,
        ):
            assert torch.equal(found, expected)
    assert loaded.code == module.code
    for twin, node in zip(loaded.graph.nodes, module.graph.nodes, strict=True):
        assert (twin.name, twin.op) == (node.name, node.op)
        if is_tensor(node):
            assert shape_of(twin) == shape_of(node)
            assert dynamic_dims(twin) == dynamic_dims(node)
    mine, theirs = loaded.state_dict(), module.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_what_was_loaded_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    module, args, _ = captured("tied_language_model")
    first, second = tmp_path / "a" / suffix, tmp_path / "b" / suffix
    save_module(first, module, {"args": args})
    save_module(second, *load_module(first))
    assert content(first) == content(second)


def test_a_loaded_module_trains_copies_and_exports(tmp_path: Path) -> None:
    module, args, _ = captured("reused_module")
    save_module(tmp_path / "a.fxc", module, {})
    loaded, _ = load_module(tmp_path / "a.fxc")
    exported = torch.export.export(loaded, args).module()
    torch.testing.assert_close(exported(*args), module(*args))
    torch.testing.assert_close(copy.deepcopy(loaded)(*args), module(*args))

    loaded.train()
    loaded(*args).square().sum().backward()
    assert all(value.grad is not None for value in loaded.parameters())
    assert not torch.equal(loaded(*args), module(*args))  # batch statistics


def test_modes_flags_and_ties_come_back(tmp_path: Path) -> None:
    module, _, _ = captured("tied_language_model")
    module.get_parameter("embed.weight").requires_grad_(False)
    module.register_buffer("steps", torch.arange(3), persistent=False)
    module.train()
    save_module(tmp_path / "a", module, {})
    loaded, _ = load_module(tmp_path / "a")
    assert loaded.training
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embed.weight")
    assert not loaded.get_parameter("head.weight").requires_grad
    assert loaded.get_parameter("norm.weight").requires_grad
    assert loaded.get_buffer("steps").tolist() == [0, 1, 2]
    assert "steps" not in loaded.state_dict()
    assert "embed.weight" in load_file(part(tmp_path / "a", "model"))
    assert "steps" not in load_file(part(tmp_path / "a", "model"))


def test_memory_layout_and_dtypes_come_back(tmp_path: Path) -> None:
    module, _, _ = captured("conv_chain")
    module.register_buffer("turns", torch.randn(3, 2, dtype=torch.complex64))
    module.register_buffer("short", torch.randn(4).to(torch.bfloat16))
    module.register_buffer("wide", torch.arange(3).expand(2, 3))
    weight = module.get_parameter("first.0.weight")
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    save_module(tmp_path / "a.fxc", module, {})
    loaded, _ = load_module(tmp_path / "a.fxc")
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype
    assert loaded.get_parameter("first.0.weight").stride() == weight.stride()


MANIFEST: dict[str, Any] = {
    "plain": [1, -2.5, "text", True, None],
    "numbers": (float("inf"), float("-inf"), 1 + 2j, {1: "one", (2, 3): "pair"}),
    "torch": (torch.float16, torch.device("meta"), torch.channels_last, torch.strided),
    "slices": (slice(None, 3), Ellipsis, slice(1, None, 2)),
    "empty": ([], (), {}),
}


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    module, _, _ = captured("mlp")
    kept: dict[str, Any] = {
        "first.weight": (torch.tensor([0, 2]), None),
        "scalar": torch.tensor(1.5),
    }
    save_module(tmp_path / "a.fxc", module, {**MANIFEST, "kept": kept})
    _, manifest = load_module(tmp_path / "a.fxc")
    found = manifest.pop("kept")
    assert manifest == MANIFEST
    assert torch.equal(found["first.weight"][0], kept["first.weight"][0])
    assert found["first.weight"][1] is None
    assert found["scalar"].shape == ()


@dataclass
class Answer:
    score: Tensor
    extra: Tensor


torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: dict[str, Tensor]) -> Answer:
        y = self.linear(x)
        return Answer(y * scale["by"], y[:, 0])


def answering(path: Path) -> tuple[CapturedModule, tuple[Any, ...]]:
    args = (torch.randn(2, 3), {"by": torch.randn(2, 2)})
    found = capture(Answering(), args)
    save_module(
        path, found.module, {"args": found.args, "answer": Answer(*map(torch.ones, (1, 2)))}
    )
    return found.module, args


def test_dataclasses_come_back(tmp_path: Path) -> None:
    module, args = answering(tmp_path / "a.fxc")
    loaded, manifest = load_module(tmp_path / "a.fxc")
    assert isinstance(loaded(*args), Answer)
    assert torch.equal(loaded(*args).score, module(*args).score)
    assert isinstance(manifest["answer"], Answer)


def test_without_its_class_a_dataclass_is_a_dict(tmp_path: Path) -> None:
    module, args = answering(tmp_path / "a")
    renamed = json.dumps(manifest_of(tmp_path / "a")).replace("tests.Answer", "nowhere.Answer")
    write_manifest(tmp_path / "a", json.loads(renamed))
    loaded, manifest = load_module(tmp_path / "a")
    assert set(loaded(*args)) == {"score", "extra"}
    assert torch.equal(loaded(*args)["extra"], module(*args).extra)
    assert set(manifest["answer"]) == {"score", "extra"}


@saveable
class Masked(nn.Module):
    mask: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))

    def config(self) -> Mapping[str, Any]:
        return {"shape": self.shape}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Masked:
        return cls(**config)

    def forward(self, value: Tensor) -> Tensor:
        return value * self.mask


def with_module(made: nn.Module) -> tuple[CapturedModule, tuple[Any, ...]]:
    module, args, _ = captured("mlp")
    node = next(n for n in module.graph.nodes if n.target == "first.weight")
    users = list(node.users)
    module.add_submodule("hidden.first_weight", made)
    with module.graph.inserting_after(node):
        call = module.graph.call_module("hidden.first_weight", (node,))
    call.meta["val"] = node.meta["val"]
    for user in users:
        user.replace_input_with(node, call)
    module.recompile()
    return module, args


def test_registered_modules_are_saved(tmp_path: Path) -> None:
    masked = Masked((7, 5))
    masked.mask[:3] = False
    module, args = with_module(masked)
    save_module(tmp_path / "a.fxc", module, {})
    loaded, _ = load_module(tmp_path / "a.fxc")
    assert torch.equal(loaded(*args), module(*args))
    assert isinstance(loaded.get_submodule("hidden.first_weight"), Masked)


def test_other_modules_ask_for_finalize(tmp_path: Path) -> None:
    module, _ = with_module(nn.Identity())
    with pytest.raises(FxCompressError, match=r"hidden.first_weight.*Identity.*finalize"):
        save_module(tmp_path / "a.fxc", module, {})
    assert not list(tmp_path.iterdir())


def test_unnamed_functions_are_refused(tmp_path: Path) -> None:
    module, _, _ = captured("mlp")
    node = next(n for n in module.graph.nodes if n.op == "call_function")
    node.target = operator.attrgetter("x")
    with pytest.raises(FxCompressError, match=node.name):
        save_module(tmp_path / "a.fxc", module, {})
    assert not list(tmp_path.iterdir())


def test_values_that_need_code_are_refused(tmp_path: Path) -> None:
    module, _, _ = captured("mlp")
    with pytest.raises(FxCompressError, match=r"manifest holds a function"):
        save_module(tmp_path / "a", module, {"loss": captured})
    assert not list(tmp_path.iterdir())


def test_one_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    module, _, _ = captured("mlp")
    save_module(tmp_path / "a.fxc", module, {})
    shutil.copy(tmp_path / "a.fxc", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(module.state_dict())
        assert json.loads(file.metadata()["fxcompress"])["format"] == "fxcompress"
