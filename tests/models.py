"""The registry of tiny nets, each built with seeded weights and example inputs.

Parameters and BatchNorm statistics are drawn at random, also those that layers initialise to zeros
or ones: a wrong channel mapping must not hide behind a unit scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import nets_convolution as conv
import nets_sequence as seq

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

BATCH = 2
IMAGE = (BATCH, 3, 8, 6)
TOKENS = (BATCH, 7, 5)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and running statistic of `model`, in place, and set it to evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.rand(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise)
            elif name.endswith(("running_mean", "bias")):
                value.copy_(noise - 0.5)
            elif not isinstance(value, nn.Parameter):
                continue
            elif value.ndim < 2:  # scales of norms and layers, slopes
                value.copy_(0.4 + noise)
            else:
                fan_in = value[0].numel() if value.shape[0] > 1 else 3
                value.copy_((noise - 0.5) * (12 / fan_in) ** 0.5)
    return model.eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _entry(net: type[nn.Module], *shape: int) -> Callable[[], Example]:
    return lambda: (randomize(net()), (normal(*shape),), {})


def _tied_language_model() -> Example:
    tokens = torch.randint(17, (BATCH, 7), generator=torch.Generator().manual_seed(1))
    return randomize(seq.TiedLanguageModel()), (tokens,), {}


def _many_inputs() -> Example:
    inputs = normal(BATCH, 5), normal(BATCH, 6, seed=2)
    return randomize(seq.ManyInputs()), inputs, {"scale": normal(BATCH, 4, seed=3)}


MODELS: dict[str, Callable[[], Example]] = {
    "mlp": _entry(seq.MLP, BATCH, 5),
    "reused_module": _entry(seq.ReusedModule, BATCH, 5),
    "siblings": _entry(seq.Siblings, BATCH, 5),
    "entangled_sum": _entry(seq.EntangledSum, BATCH, 5),
    "swiglu": _entry(seq.SwiGLU, *TOKENS),
    "fused_attention": _entry(seq.FusedAttention, *TOKENS),
    "chunked_attention": _entry(seq.ChunkedAttention, *TOKENS),
    "interleaved_attention": _entry(seq.InterleavedAttention, *TOKENS),
    "multi_query_attention": _entry(seq.MultiQueryAttention, *TOKENS),
    "rotary_grouped_attention": _entry(seq.RotaryGroupedAttention, *TOKENS),
    "patch_merging": _entry(seq.PatchMerging, BATCH, 3, 16, 12),
    "tied_language_model": _tied_language_model,
    "many_inputs": _many_inputs,
    "token_classifier": _entry(seq.TokenClassifier, BATCH, 3, 9, 6),
    "conv_chain": _entry(conv.ConvChain, *IMAGE),
    "padded_residual": _entry(conv.PaddedResidual, *IMAGE),
    "projected_residual": _entry(conv.ProjectedResidual, *IMAGE),
    "dense_concat": _entry(conv.DenseConcat, *IMAGE),
    "grouped_conv": _entry(conv.GroupedConv, *IMAGE),
    "squeeze_excite": _entry(conv.SqueezeExcite, *IMAGE),
    "flatten_head": _entry(conv.FlattenHead, *IMAGE),
    "convnext_block": _entry(conv.ConvNeXtBlock, *IMAGE),
    "group_norm": _entry(conv.GroupNormNet, *IMAGE),
    "prelu": _entry(conv.PReLUNet, *IMAGE),
    "transposed_conv": _entry(conv.TransposedConv, *IMAGE[:2], 8, 12),
    "pixel_shuffle": _entry(conv.PixelShuffleNet, *IMAGE),
    "channel_shuffle": _entry(conv.ChannelShuffle, *IMAGE),
    "twice_over": _entry(conv.TwiceOver, *IMAGE),
    "points": _entry(conv.PointCloud, *IMAGE[:2], 9),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> Example:
    """A registered model and its inputs in `dtype`; integer inputs stay integers."""
    model, args, kwargs = MODELS[name]()
    args, kwargs = cast((args, kwargs), dtype)
    return model.to(dtype), args, kwargs


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """`tree` with its floating tensors in `dtype`."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def rebatch(tree: Any, batch: int, seed: int = 5) -> Any:
    """`tree` with fresh tensors of the same kinds whose first axis is `batch`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(old: Tensor) -> Tensor:
        shape = (batch, *old.shape[1:])
        if old.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=old.dtype)
        return torch.randint(int(old.max()) + 1, shape, generator=generator, dtype=old.dtype)

    return pytree.tree_map_only(Tensor, draw, tree)


def tensors(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
