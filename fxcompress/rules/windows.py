"""Rules of ops that read windows of positions: pooling, resampling, sampling, unfolding."""

from __future__ import annotations

import re

from torch import fx

from fxcompress.axes.expressions import Axes, product
from fxcompress.graph.metadata import example_shape
from fxcompress.graph.schema import arguments, packet_of, per_axis
from fxcompress.rules.context import Context, Output
from fxcompress.rules.registry import axis_rule

POOLS = tuple(
    f"aten::{kind}{count}d"
    for kind in ("adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "max_pool")
    for count in (1, 2, 3)
)
POOLS += (
    "aten::_adaptive_avg_pool2d", "aten::_adaptive_avg_pool3d",
    "aten::max_pool2d_with_indices", "aten::max_pool3d_with_indices",
)  # fmt: skip
MIRRORS = tuple(
    f"aten::{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)
)
RESAMPLERS = (
    "aten::_upsample_bicubic2d_aa", "aten::_upsample_bilinear2d_aa",
    "aten::_upsample_nearest_exact1d", "aten::_upsample_nearest_exact2d",
    "aten::_upsample_nearest_exact3d", "aten::upsample_bicubic2d", "aten::upsample_bilinear2d",
    "aten::upsample_linear1d", "aten::upsample_nearest1d", "aten::upsample_nearest2d",
    "aten::upsample_nearest3d", "aten::upsample_trilinear3d",
)  # fmt: skip


@axis_rule(*POOLS, *MIRRORS, *RESAMPLERS)
def _positions(ctx: Context, node: fx.Node) -> Output:
    """Each channel alone, over windows of the positions, which are the last axes.

    Along an axis with windows of a single position nothing is pooled.
    """
    value = node.meta["val"]
    many = isinstance(value, (tuple, list))
    shape = example_shape(value[0]) if many else ctx.shape(node)
    count = int(re.findall(r"\dd", str(node.target))[0][0])
    axes = ctx.of(node.args[0])
    places = range(len(axes) - count, len(axes))
    pooled = [place for place, alone in zip(places, _single(node, count), strict=True) if not alone]
    ctx.freeze((axes[place] for place in pooled), node, "pooled or resampled positions")
    out = tuple(
        ctx.fixed(shape[place], node, "positions") if place in pooled else expr
        for place, expr in enumerate(axes)
    )
    if "max" in str(node.target):
        kept = (expr for place, expr in enumerate(axes) if place not in pooled)
        ctx.nonlinearity(kept, node, str(node.target))
    return (out, out) if many else out


def is_max_pool(node: fx.Node) -> bool:
    """Whether a node takes maxima over windows, so that it commutes with what is monotone."""
    packet = packet_of(node)
    return packet in POOLS and "max" in packet


def _single(node: fx.Node, count: int) -> list[bool]:
    """For each of the last axes, whether every window is one position, and the next the next."""
    named = arguments(node)
    numbered = isinstance(node.meta["val"], (tuple, list))  # indices count places of all axes
    if "kernel_size" not in named or numbered:
        return [False] * count
    stride = named["stride"] or named["kernel_size"]
    windows = (per_axis(value, count) for value in (named["kernel_size"], stride, named["padding"]))
    return [one == (1, 1, 0) for one in zip(*windows, strict=True)]


@axis_rule("aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d")
def _grid_sampler(ctx: Context, node: fx.Node) -> Axes:
    """Channels at positions that the grid (b *positions coordinates) tells."""
    named = arguments(node)
    batch, channel, *positions = ctx.of(named["input"])
    grid = ctx.of(named["grid"])
    ctx.unify(batch, grid[0], node)
    ctx.freeze((*positions, *grid[1:]), node, "sampled positions")
    ctx.nonlinearity(batch, node, str(node.target))
    return (ctx.space.resolve(batch), channel, *grid[1:-1])


@axis_rule("aten::unfold")
def _unfold(ctx: Context, node: fx.Node) -> Axes:
    """One axis becomes windows, with the places in a window as the last axis."""
    axes = list(ctx.of(node.args[0]))
    shape = ctx.shape(node)
    if not axes:
        return ctx.opaque(node, "a window of one")
    dim = arguments(node)["dimension"] % len(axes)
    ctx.freeze(axes[dim], node, "read in windows")
    axes[dim] = ctx.fixed(shape[dim], node, "windows")
    return (*axes, ctx.fixed(shape[-1], node, "places in a window"))


@axis_rule("aten::im2col")
def _im2col(ctx: Context, node: fx.Node) -> Axes:
    """*b c h w -> *b (c places) windows."""
    *lead, channel, height, width = ctx.of(node.args[0])
    ctx.freeze((height, width), node, "read in windows")
    *_, rows, windows = ctx.shape(node)
    places = ctx.fixed(rows // channel.size, node, "places in a window")
    return (*lead, product((channel, places)), ctx.fixed(windows, node, "windows"))


@axis_rule("aten::col2im")
def _col2im(ctx: Context, node: fx.Node) -> Axes:
    """*b (c places) windows -> *b c h w."""
    *lead, rows, windows = ctx.of(node.args[0])
    *_, channels, height, width = ctx.shape(node)
    channel, places = ctx.split(rows, (channels, rows.size // channels), node)
    ctx.freeze((places, windows), node, "read in windows")
    positions = (ctx.fixed(size, node, "positions") for size in (height, width))
    return (*lead, channel, *positions)
