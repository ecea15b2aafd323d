from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxcompress
import models
from fxcompress.errors import LoadError
from fxcompress.loaders import load_model, parse_inputs

FACTORIES = """
import torch
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2)
    def forward(self, x, scale=1.0):
        return self.layer(x) * scale

def model(): return Net()
def pair(): return Net(), (torch.ones(2, WIDTH),)
def triple(): return Net(), [torch.ones(2, WIDTH)], {"scale": torch.ones(2, 1)}
def strange(): return Net(), torch.ones(2, WIDTH)
def broken(): raise ValueError("no such luck")
number = 3
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 3\n")
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path / "nets.py"


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("1x3x8x8", (1, 3, 8, 8), torch.float32),
        ("2x16:int64", (2, 16), torch.int64),
        ("4:bool", (4,), torch.bool),
        ("2x2:bfloat16", (2, 2), torch.bfloat16),
    ],
)
def test_a_shape_becomes_a_tensor(spec: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    (tensor,), kwargs = parse_inputs([spec])
    again = parse_inputs([spec])[0][0]

    assert (tuple(tensor.shape), tensor.dtype, kwargs) == (shape, dtype, {})
    assert torch.equal(tensor, again)


def test_named_inputs_become_keywords() -> None:
    args, kwargs = parse_inputs(["2x3", "mask=2x3:bool"])
    assert len(args) == 1
    assert kwargs["mask"].all()


@pytest.mark.parametrize("spec", ["", "1x", "axb", "3x3:", "x=", "-1x3", "2x3:float", "2,3"])
def test_what_is_no_shape_is_refused(spec: str) -> None:
    with pytest.raises(LoadError, match=r"1x3x224x224|choose"):
        parse_inputs([spec])


@pytest.mark.parametrize("name", ["pair", "triple"])
def test_a_factory_may_bring_its_inputs(nets: Path, name: str) -> None:
    loaded = load_model(f"{nets}:{name}")

    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    assert loaded.model(*loaded.args, **loaded.kwargs).shape == (2, 2)
    assert set(loaded.kwargs) == ({"scale"} if name == "triple" else set())


def test_inputs_that_are_given_replace_the_factory_s(nets: Path) -> None:
    assert load_model(f"{nets}:pair", ["5x3"]).args[0].shape == (5, 3)
    assert load_model(f"{nets}:model", ["5x3"]).args[0].shape == (5, 3)


def test_random_weights_follow_the_seed_and_leave_the_generator_alone(nets: Path) -> None:
    before = torch.get_rng_state()
    first, same, other = (load_model(f"{nets}:pair", seed=seed).model for seed in (1, 1, 2))

    assert isinstance(first, nn.Module) and isinstance(same, nn.Module)  # noqa: PT018
    assert isinstance(other, nn.Module)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.state_dict()["layer.weight"], same.state_dict()["layer.weight"])
    assert not torch.equal(first.state_dict()["layer.weight"], other.state_dict()["layer.weight"])


def test_a_factory_of_a_module_in_the_current_directory(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nets.parent)
    nets.rename(nets.parent / "nets_of_mine.py")

    assert load_model("nets_of_mine:pair").args[0].shape == (2, 3)
    assert load_model("torch.nn:Identity", ["2x4"]).args[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{nets}", "which function .* makes the model.* it has Net, model, pair"),
        ("{nets}:pear", "no function 'pear' there; the nearest are pair"),
        ("{nets}:number", "no function 'number'"),
        ("{nets}:model", "does not say what it takes; give inputs"),
        ("{nets}:strange", r"returned \(Net, Tensor\); it must return a model"),
        ("{nets}:broken", r"ValueError: no such luck \(.*nets.py:17\)"),
        ("{nets}.py:model", "there is no file"),
        ("no_such_package.nets:model", "no module 'no_such_package' here or installed"),
        ("resnet18", "'resnet18' is no model; give torchvision:NAME"),
        ("torchvision:", "names no model; write torchvision:NAME"),
        ("there.fxc", "there is nothing at there.fxc"),
        ("net.onnx", "only check and bench take those"),
    ],
)
def test_what_cannot_be_loaded_is_refused(nets: Path, spec: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        load_model(spec.format(nets=nets))


def test_a_file_that_does_not_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package\n")
    with pytest.raises(LoadError, match=r"running .*bad\.py failed: ModuleNotFoundError"):
        load_model(f"{tmp_path / 'bad.py'}:model")


def test_a_saved_program_is_loaded_whole(tmp_path: Path) -> None:
    model, args, kwargs = models.build("conv_chain", torch.float32)
    program = fxcompress.compile(model, args, kwargs)
    for path in (tmp_path / "net.fxc", tmp_path / "net"):
        program.save(path)
        loaded = load_model(str(path))

        assert loaded.program is not None
        assert [value.shape for value in loaded.args] == [value.shape for value in program.args]
        assert torch.equal(loaded.program(*args), program(*args))
        assert load_model(str(path), ["3x3x8x6"]).args[0].shape == (3, 3, 8, 6)


def test_a_pt2_file_is_left_to_the_compiler(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    example = (torch.ones(2, 4),)
    torch.export.save(torch.export.export(nn.Linear(4, 3), example), path)
    loaded = load_model(str(path))

    assert loaded.model == path
    assert fxcompress.compile(loaded.model, loaded.args, loaded.kwargs)(*example).shape == (2, 3)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested"])
def test_weights_come_from_a_file(nets: Path, tmp_path: Path, kind: str) -> None:
    state = {"layer.weight": torch.full((2, 3), 7.0), "layer.bias": torch.zeros(2)}
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)

    loaded = load_model(f"{nets}:pair", weights=path)
    assert isinstance(loaded.model, nn.Module)
    assert loaded.model(*loaded.args).eq(21).all()


class _Code:
    def __reduce__(self) -> Any:
        return builtins.print, ("this ran",)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layer.weight": torch.zeros(2, 3)}, "layer.bias is missing in the file"),
        (
            {"layer.weight": torch.zeros(2, 4), "layer.bias": torch.zeros(2)},
            r"layer.weight is \[2, 4\] in the file, \[2, 3\] in the model",
        ),
        ([1, 2], "holds no state dict"),
        (_Code(), "cannot be read as plain tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    nets: Path, tmp_path: Path, state: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(LoadError, match=message):
        load_model(f"{nets}:pair", weights=tmp_path / "w.pt")
    assert "this ran" not in capsys.readouterr().out


def test_torchvision_models_know_their_size() -> None:
    pytest.importorskip("torchvision")
    loaded = load_model("torchvision:efficientnet_b1")
    assert loaded.args[0].shape == (1, 3, 240, 240)
    with pytest.raises(LoadError, match="the nearest are resnet"):
        load_model("torchvision:resnet17")


def test_timm_models_know_their_size() -> None:
    pytest.importorskip("timm")
    loaded = load_model("timm:vit_tiny_patch16_224")
    assert loaded.args[0].shape == (1, 3, 224, 224)
    with pytest.raises(LoadError, match="timm has no model"):
        load_model("timm:no_such_net")


def test_a_torchvision_of_another_build_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchvision")
    import importlib

    def fails(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(LoadError, match=r"pip install .*torchvision==[\d.]+ --index-url .*/whl/"):
        load_model("torchvision:resnet18")


def _save_config(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=31, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(folder)
    return config


def test_a_config_alone_gives_random_weights(tmp_path: Path) -> None:
    _save_config(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")

    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert isinstance(loaded.model, nn.Module)
    assert loaded.model(*loaded.args, **loaded.kwargs).logits.shape == (2, 16, 31)


def test_a_directory_gives_its_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(_save_config(tmp_path))
    model.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}#AutoModelForCausalLM")

    assert isinstance(loaded.model, nn.Module)
    expected = model.eval()(**loaded.kwargs).logits
    torch.testing.assert_close(loaded.model(**loaded.kwargs).logits, expected)


def test_what_hugging_face_cannot_load_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(LoadError, match="nothing is downloaded; pass a directory"):
        load_model("hf:nobody/no-such-model")
    with pytest.raises(LoadError, match="has no config"):
        load_model(f"hf:{tmp_path}")
    _save_config(tmp_path)
    with pytest.raises(LoadError, match="no model class 'AutoNothing'"):
        load_model(f"hf:{tmp_path}#AutoNothing")
