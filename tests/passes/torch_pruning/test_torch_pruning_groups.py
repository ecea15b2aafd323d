"""The groups of torch-pruning are ours, but for those that it does not find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

import fxcompress as fx
from models import build, normal
from programs import program
from sides import CONVOLUTION, Sides, ours_by_layers, sides_of

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

OURS_ONLY: Mapping[str, tuple[str, ...]] = {
    # Whole groups of a grouped layer, of heads, or of what a shuffle deals out: torch-pruning
    # removes the same number of channels from each and never one of them.
    "channel_shuffle": ("stem.0",),
    "grouped_conv": ("reduce.0",),
    "transposed_conv": ("encode",),
    # Dims of heads beside heads: it has one group, of all places of the projection.
    "chunked_attention": ("qkv",),
    "fused_attention": ("qkv",),
    "interleaved_attention": ("qkv",),
    # What is padded on the left and on the right are channels of their own; it counts them once.
    "padded_residual": ("down.0",),
    # A position in an upscaled pixel is an axis of its own, which may not shrink.
    "pixel_shuffle": ("second",),
    # Query heads follow the key heads they read; it takes the projections for independent.
    "rotary_grouped_attention": ("q_proj", "q_proj", "v_proj"),
    # A tied table is one parameter that reads and writes the units; it knows only one layer of it.
    "tied_language_model": ("head",),
}
THEIRS_ONLY = {"rotary_grouped_attention": 2, "tied_language_model": 1}
TINY = [
    "channel_shuffle", "chunked_attention", "conv_chain", "convnext_block", "dense_concat",
    "entangled_sum", "flatten_head", "fused_attention", "group_norm", "grouped_conv",
    "interleaved_attention", "mlp", "padded_residual", "patch_merging", "pixel_shuffle", "prelu",
    "projected_residual", "reused_module", "rotary_grouped_attention", "squeeze_excite", "swiglu",
    "tied_language_model", "token_classifier", "transposed_conv",
]  # fmt: skip


def _theirs(model: nn.Module, args: tuple[Any, ...]) -> set[Sides]:
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=args, verbose=False)
    roots = (CONVOLUTION, nn.Linear)
    return {sides_of(graph, group) for group in graph.get_all_groups(root_module_types=roots)}


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("name", TINY)
def test_its_groups_are_ours(name: str) -> None:
    model, args, _ = build(name)
    ours, theirs = ours_by_layers(program(name), model), _theirs(model, args)
    extra = sorted(ours[sides].name.partition(":")[0] for sides in ours.keys() - theirs)
    assert extra == sorted(OURS_ONLY.get(name, ()))
    assert len(theirs - ours.keys()) == THEIRS_ONLY.get(name, 0)
    assert ours.keys() & theirs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["resnet18", "vgg11_bn", "densenet121", "mobilenet_v2", "googlenet", "efficientnet_b0",
     "convnext_tiny"],
)  # fmt: skip
def test_its_groups_of_a_torchvision_model_are_ours(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(models, name)(weights=None, **options).eval()
    args = (normal(2, 3, 64, 64),)
    assert ours_by_layers(fx.compile(model, args), model).keys() == _theirs(model, args)
