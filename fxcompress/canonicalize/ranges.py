"""Ranges of an axis: read by slices, and cut from the channels before a view makes an axis of them.

Multi-query attention takes queries, key and value as ranges of the axis of heads:

    Before: ``y = view(x, [b, n, h + 2, d])``; ``slice(y, 2, 0, h)``, ``index(y, [.., [-2]])`` …
    After:  ``view(part, [b, n, h, d])``, ``view(part, [b, n, 1, d])`` … for each part of
            ``split_with_sizes(x, [h * d, d, d], 2)``
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from fxcompress.canonicalize.constants import constant_of
from fxcompress.canonicalize.fused import VIEWS, first_new_axis, layout_of, prefix_of, spelling_of
from fxcompress.graph.captured import CapturedModule, aten
from fxcompress.graph.emit import emit
from fxcompress.graph.metadata import dynamic_dims, shape_of

Range = tuple[int, int]
"""From the first index to behind the last."""


def spell_out_ranges(module: CapturedModule) -> int:
    """Read by a slice, and copy, what a constant index reads in one stretch.

    Before: ``index(x, [None, tensor([3, 4])])`` of 5 channels. After: ``clone(slice(x, 1, 3, 5))``.
    """
    rewritten = 0
    for node in list(module.graph.nodes):
        found = _stretch(module, node)
        copy = _sliced(node, *found) if found else None
        if copy is not None:
            node.replace_all_uses_with(copy)
            module.graph.erase_node(node)
            rewritten += 1
    return rewritten


def _stretch(module: CapturedModule, node: fx.Node) -> tuple[int, Range] | None:
    """The axis that a node reads by a constant index, and the range, if it is one."""
    args: tuple[Any, ...] = node.args
    if node.target is aten.index.Tensor:
        given = [(dim, index) for dim, index in enumerate(args[1]) if index is not None]
        dim, index = given[0] if len(given) == 1 else (0, None)
    elif node.target is aten.index_select.default:
        dim, index = args[1:]
    else:
        return None
    places = constant_of(module, index)
    if places is None or places.dim() != 1 or places.dtype not in (torch.int32, torch.int64):
        return None
    rank = len(shape_of(args[0]))
    if rank == 0 or dim % rank in dynamic_dims(args[0]) or places.numel() == 0:
        return None
    start = int(places[0]) % shape_of(args[0])[dim]
    end = start + places.numel()
    counted = torch.arange(start, end) - places
    # Every place counts from the front, or every place from the back.
    return (dim % rank, (start, end)) if bool((counted == counted[0]).all()) else None


def _sliced(node: fx.Node, dim: int, places: Range) -> fx.Node | None:
    """A copy of a slice that lies in memory as the result of `node` does, if there is one."""
    graph = node.graph
    with graph.inserting_before(node):
        piece = emit(graph, aten.slice.Tensor, (node.args[0], dim, *places), node)
        for target in (aten.clone.default, aten.contiguous.default):
            copy = emit(graph, target, (piece,), node)
            if layout_of(copy) == layout_of(node):
                return copy
            graph.erase_node(copy)
    graph.erase_node(piece)
    return None


@dataclass(frozen=True)
class _Ranges:
    """One match.

    Attributes:
        view: The node that splits the last axis.
        first: The first of the axes that the last axis became.
        dim: Which axis of the view the readers take ranges of.
        readers: Each reader with its range.
    """

    view: fx.Node
    first: int
    dim: int
    readers: tuple[tuple[fx.Node, Range], ...]

    @property
    def cuts(self) -> list[Range]:
        """The stretches between all ends of ranges."""
        size = shape_of(self.view)[self.dim]
        ends = {0, size, *(end for _, places in self.readers for end in places)}
        return list(pairwise(sorted(ends)))


def separate_fused_ranges(module: CapturedModule) -> int:
    """Split channels that are read in ranges before the view that makes an axis of them."""
    separated = 0
    for view in list(module.graph.nodes):
        match = _match(view) if view.target in VIEWS else None
        if match is not None and _separate(match):
            separated += 1
    return separated


def _match(view: fx.Node) -> _Ranges | None:
    """Match a view of the last axis that is only read in ranges of one of the axes it made."""
    first = first_new_axis(view)
    found = [_range(user) for user in view.users]
    dims = {one[0] for one in found if one is not None}
    if first is None or None in found or len(dims) != 1:
        return None
    (dim,) = dims
    sizes = shape_of(view)
    if not first <= dim < len(sizes) or math.prod(sizes[dim + 1 :]) == 1:
        return None  # ranges of the last axis are ranges of the channels as it is
    readers = zip(view.users, (one[1] for one in found if one is not None), strict=True)
    match = _Ranges(view, first, dim, tuple(readers))
    cuts = match.cuts
    return match if len(cuts) > 1 and all(places in cuts for _, places in match.readers) else None


def _range(user: fx.Node) -> tuple[int, Range] | None:
    """The axis that a slice cuts, and its range."""
    if user.target is not aten.slice.Tensor:
        return None
    given: tuple[Any, ...] = user.args
    source, dim, start, end, step = given + (0, None, None, 1)[len(given) - 1 :]
    dim %= len(shape_of(source))
    if dim in dynamic_dims(source) or step != 1 or fx.Node in (type(start), type(end)):
        return None
    start, end, _ = slice(start, end).indices(shape_of(source)[dim])
    return dim, (start, end)


def _separate(match: _Ranges) -> bool:
    """Emit the separated form; take it back and say no if it would lie in memory otherwise."""
    graph, prefix = match.view.graph, prefix_of(match.view, match.first)
    if prefix is None:
        return False
    emitted: list[fx.Node] = []

    def add(target: Any, *args: Any) -> fx.Node:
        emitted.append(emit(graph, target, args, match.view))
        return emitted[-1]

    with graph.inserting_before(match.view):
        pieces = _pieces(match, prefix, add)
    pairs = list(zip((reader for reader, _ in match.readers), pieces, strict=True))
    if any(layout_of(reader) != layout_of(piece) for reader, piece in pairs):
        for node in reversed(emitted):
            graph.erase_node(node)
        return False
    for reader, piece in pairs:
        reader.replace_all_uses_with(piece)
    return True


def _pieces(match: _Ranges, prefix: list[Any], add: Callable[..., fx.Node]) -> list[fx.Node]:
    """What every reader got: its part of the channels, viewed as before."""
    sizes, spelling = shape_of(match.view), spelling_of(match.view)
    before, after = sizes[match.first : match.dim], sizes[match.dim + 1 :]
    width = math.prod(after)
    source: Any = match.view.args[0]
    if math.prod(before) > 1:
        # The ranges are not of the slowest axis: (g n d) first becomes g times (n d).
        source = add(spelling, source, [*prefix, *before, sizes[match.dim] * width])
    lengths = [(end - start) * width for start, end in match.cuts]
    last = len(shape_of(source)) - 1
    split = add(aten.split_with_sizes.default, source, lengths, last)
    pieces = []
    for _, (start, end) in match.readers:
        part = add(operator.getitem, split, match.cuts.index((start, end)))
        pieces.append(add(spelling, part, [*prefix, *before, end - start, *after]))
    return pieces
