"""The models that the compiler's speed is measured on, with random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torchvision_shim

_LIBRARY = torchvision_shim.install()  # declarations that vanish with the object
IMAGE, TOKENS, WORDS = (2, 3, 224, 224), (2, 64), 4096


@dataclass(frozen=True)
class Subject:
    """A model with a batch of two, and what torch-pruning has to be told about it.

    Attributes:
        model: In evaluation mode.
        inputs: By keyword, as the model takes them.
        ignored: Layers whose outputs stay.
        num_heads: Heads of each layer whose outputs are heads.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    ignored: tuple[nn.Module, ...] = ()
    num_heads: Mapping[nn.Module, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The model's own: parameters and buffers, tied ones once."""
        state = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in state)


def subject(name: str) -> Subject:
    """One of `SUBJECTS`, made anew."""
    torch.manual_seed(0)
    return SUBJECTS[name]()


def tiny() -> Subject:
    """What is run first, so that nobody pays for imports and caches."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return Subject(
        nn.Sequential(model, nn.Linear(8 * 36, 4)).eval(), {"input": torch.zeros(2, 3, 8, 8)}
    )


def _vision(name: str) -> Subject:
    from torchvision import models

    model = models.get_model(name, weights=None).eval()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    heads: dict[nn.Module, int] = {
        layer: layer.num_heads
        for layer in model.modules()
        if isinstance(layer, nn.MultiheadAttention)
    }
    return Subject(model, {"x": torch.randn(IMAGE)}, (layers[-1],), heads)


def _swin() -> Subject:
    made = _vision("swin_t")
    attentions = [layer for layer in made.model.modules() if hasattr(layer, "qkv")]
    heads = {layer.qkv: layer.num_heads for layer in attentions}
    return Subject(made.model, made.inputs, made.ignored, heads)  # type: ignore[arg-type]


def _llama(dtype: torch.dtype = torch.float32) -> Subject:
    """24 layers of LLaMA's shape: grouped queries, gated layers; 70 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.eval().to(dtype)
    heads: dict[nn.Module, int] = {}
    for layer in model.model.layers:
        heads |= {layer.self_attn.q_proj: 8, layer.self_attn.k_proj: 4, layer.self_attn.v_proj: 4}
    tokens = torch.randint(0, WORDS, TOKENS)
    return Subject(model, {"input_ids": tokens}, (model.lm_head,), heads)


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "ResNet-50": lambda: _vision("resnet50"),
    "DenseNet-121": lambda: _vision("densenet121"),
    "ViT-B/16": lambda: _vision("vit_b_16"),
    "Swin-T": _swin,
    "LLaMA, 24 layers": _llama,
    "LLaMA, 24 layers, bf16": lambda: _llama(torch.bfloat16),
}


def parameters(made: Subject) -> int:
    """How many numbers are trained."""
    return sum(value.numel() for value in made.model.parameters())


def by_position(made: Subject) -> Any:
    """The only input, for tools that take no keywords."""
    return next(iter(made.inputs.values()))
