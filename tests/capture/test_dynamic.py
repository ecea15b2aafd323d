"""Axes beyond the batch are free where asked for: the smaller program runs at sizes that the
capture has not seen, and is exact there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from models import cast, normal, randomize, tensors
from nets_convolution import conv_bn
from selection import RandomSelection, zero_masked

Case = tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, str]]]
"""A model, inputs by name, and which axes of them are free."""
LENGTH = {0: "batch", 1: "length"}
SIZE = {0: "batch", 2: "height", 3: "width"}
TOLERANCE = 1e-10
"""Double precision: only the order of sums differs."""
SINGLE = 1e-4
"""The same in single precision, across two runtimes."""


class Segmenter(nn.Module):
    """Fully convolutional, with a skip and an image-wide context that is resized to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv_bn(3, 6), conv_bn(6, 10, stride=2)
        self.context, self.up = nn.Conv2d(10, 10, 1), nn.Conv2d(10, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x).relu()
        y = self.down(skip).relu()
        y = y + self.context(y.mean((2, 3), keepdim=True))
        y = nn.functional.interpolate(self.up(y), size=skip.shape[-2:], mode="bilinear")
        return self.head(skip + y)  # type: ignore[no-any-return]


def _tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


class Text(nn.Module):
    """A model of transformers that returns its numbers alone, so that the encoder's are hidden."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor | None = None) -> Tensor:
        more = {} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}
        return getattr(self.model(input_ids=input_ids, **more), self.output)  # type: ignore[no-any-return]


def _text(kind: str, head: str, **options: Any) -> Callable[[], Case]:
    def build() -> Case:
        transformers = pytest.importorskip("transformers")
        tokens: Any = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, f"{kind}Config")(use_cache=False, **tokens, **options)
        model = Text(getattr(transformers, kind + head)(config), "logits")
        inputs = {"input_ids": _tokens(2, 9)}
        free = {"input_ids": LENGTH}
        if kind == "T5":
            inputs["decoder_input_ids"] = _tokens(2, 6)
            free["decoder_input_ids"] = {0: "batch", 1: "written"}
        return model, inputs, free

    return build


def _vision(build: Callable[[], nn.Module], size: tuple[int, int] = (32, 40)) -> Callable[[], Case]:
    return lambda: (build(), {"x": normal(2, 3, *size)}, {"x": SIZE})


def _residual() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    blocks: Any = models.resnet.BasicBlock
    return models.ResNet(blocks, [1, 1, 1, 1], num_classes=5)  # type: ignore[no-any-return]


ENCODER = {"hidden_size": 20, "num_hidden_layers": 1, "intermediate_size": 28}
CASES: dict[str, Callable[[], Case]] = {
    "gpt2": _text("GPT2", "LMHeadModel", n_positions=32, n_embd=20, n_layer=1, n_head=5),
    "llama": _text("Llama", "ForCausalLM", num_attention_heads=5, num_key_value_heads=5, **ENCODER),
    "bert": _text(
        "Bert",
        "ForTokenClassification",
        num_attention_heads=5,
        max_position_embeddings=32,
        **ENCODER,
    ),
    "t5": _text(
        "T5",
        "ForConditionalGeneration",
        d_model=20,
        d_kv=4,
        d_ff=28,
        num_layers=1,
        num_heads=5,
        decoder_start_token_id=0,
    ),
    "segmenter": _vision(Segmenter, (8, 10)),
    "resnet": _vision(_residual, (64, 72)),  # no size of one anywhere, which would fix the size
}


def larger(inputs: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    """Inputs whose free axes are longer, each by another number."""
    found = {}
    for name, value in inputs.items():
        if value.is_floating_point():
            found[name] = normal(3, 3, value.shape[2] + 2 * by, value.shape[3] + by)
        else:
            found[name] = _tokens(3, value.shape[1] + by, seed=by)
    return found


def built(name: str) -> tuple[Case, fx.Program]:
    """A model and its program, with half of the units of exact groups gone."""
    torch.manual_seed(0)
    model, inputs, free = CASES[name]()
    randomize(model.double())
    inputs = cast(inputs, torch.float64)
    program = fx.compile(
        model, (), inputs, dynamic=free, passes=[RandomSelection(seed=1, exact_only=True)]
    )
    return (model, inputs, free), program


SLOW = ("gpt2", "t5", "resnet")


def _cases(*slow: str) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in CASES]


@pytest.mark.parametrize("name", _cases(*SLOW))
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_sizes_that_the_capture_has_not_seen(name: str) -> None:
    (model, inputs, free), program = built(name)
    assert [*program.dynamic] == [*free.values()]
    dense = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in program.module.parameters()) < dense
    reference = zero_masked(copy.deepcopy(model), program)
    for by in (1, 5):
        given = cast(larger(inputs, by), torch.float64)
        (found,), (expected,) = (tensors(one(**given)) for one in (program, reference))
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2"])
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_free_sizes_stay_free_in_onnx(name: str, tmp_path: Path) -> None:
    """The same in onnxruntime, in single precision as it is deployed."""
    pytest.importorskip("onnxruntime")
    (_, inputs, _), program = built(name)
    path = tmp_path / "program.onnx"
    single = fx.Program(
        copy.deepcopy(program.module).float(),
        (),
        cast(inputs, torch.float32),
        dynamic=program.dynamic,
    )
    fx.export.to_onnx(single, path)
    assert fx.export.check(path, single).ok
    given = cast(larger(inputs, 3), torch.float32)
    (expected,) = tensors(single(**given))
    (found,) = _session(path).run(None, {key: value.numpy() for key, value in given.items()})
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=SINGLE * scale)


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
