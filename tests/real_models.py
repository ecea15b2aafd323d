"""Architectures as their libraries build them, small and with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models import cast, randomize

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _vision(name: str, size: int = 64, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        models = pytest.importorskip("torchvision").models
        return models.get_model(name, weights=None, **options), (torch.randn(2, 3, size, size),), {}

    return build


def _vision_transformer() -> Built:
    build = pytest.importorskip("torchvision").models.VisionTransformer
    model = build(64, 16, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=80, num_classes=10)
    return model, (torch.randn(2, 3, 64, 64),), {}


def _timm(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        timm = pytest.importorskip("timm")
        model = timm.create_model(name, pretrained=False, img_size=64, **options)
        return model, (torch.randn(2, 3, 64, 64),), {}

    return build


def _text(name: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(
            vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options
        )
        config.use_cache = False
        head = "ForSequenceClassification" if name == "Bert" else "LMHeadModel"
        model = getattr(transformers, name + ("ForCausalLM" if name == "Llama" else head))(config)
        return model, (), {"input_ids": torch.randint(3, 50, (2, 9))}

    return build


SHAPE = {"hidden_size": 40, "num_hidden_layers": 2, "intermediate_size": 56}


REAL: dict[str, Callable[[], Built]] = {
    "resnet18": _vision("resnet18"),
    "resnext50_32x4d": _vision("resnext50_32x4d"),
    "densenet121": _vision("densenet121"),
    "mobilenet_v2": _vision("mobilenet_v2"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "convnext_tiny": _vision("convnext_tiny"),
    "vit": _vision_transformer,
    "swin_t": _vision("swin_t"),
    "timm_vit": _timm("vit_tiny_patch16_224", depth=2),
    "timm_deit": _timm("deit_tiny_distilled_patch16_224", depth=2),
    "bert": _text("Bert", num_attention_heads=5, max_position_embeddings=32, **SHAPE),
    "gpt2": _text("GPT2", n_positions=32, n_embd=40, n_layer=2, n_head=5),
    "llama": _text("Llama", num_attention_heads=10, num_key_value_heads=5, **SHAPE),
}


def built(name: str) -> Built:
    torch.manual_seed(0)
    model, args, kwargs = REAL[name]()
    args, kwargs = cast((args, kwargs), torch.float64)
    return randomize(model.double()), args, kwargs
