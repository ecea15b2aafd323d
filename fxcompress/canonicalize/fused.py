"""Separate what one linear map computes for several readers, as fused query, key and value.

The pattern is local: a view splits the last axis of a tensor and makes an axis of a few entries,
the axes are moved about, and every reader takes one entry of that axis. Taking the entries before
the view gives each reader channels of its own, so that they need not be cut alike:

    Before: ``unbind(permute(view(x, [b, n, 3, h, d]), [2, 0, 3, 1, 4]))``
    After:  ``permute(view(part, [b, n, h, d]), [0, 2, 1, 3])`` for each part of
            ``split_with_sizes(x, [h * d, h * d, h * d], 2)``
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxcompress.graph.captured import CapturedModule, aten
from fxcompress.graph.emit import emit
from fxcompress.graph.metadata import dynamic_dims, is_tensor, shape_of

_MOST_ENTRIES = 8
"""A longer axis is a range of like units (heads, positions), not a handful of different things."""

VIEWS = {aten.view.default, aten.reshape.default, aten.unflatten.int}
Labels = list[int]
Add = Callable[..., fx.Node]


@dataclass(frozen=True)
class _Fused:
    """One match.

    Attributes:
        view: The node that splits the last axis.
        first: The first of the axes that the last axis became.
        entries: Which axis of the view the readers take entries of.
        steps: The axes after each node between view and readers, and the nodes.
        readers: Each reader with the entry that it takes.
    """

    view: fx.Node
    first: int
    entries: int
    steps: tuple[tuple[fx.Node, Labels], ...]
    readers: tuple[tuple[fx.Node, int], ...]


def separate_fused_axes(module: CapturedModule) -> int:
    """Split fused channels before the view that makes an axis of them."""
    separated = 0
    for source in list(module.graph.nodes):
        match = _match(source)
        if match is not None and _separate(module.graph, match):
            separated += 1
    return separated


def _match(source: fx.Node) -> _Fused | None:
    """Match readers of one axis of `source` with the view that made it."""
    taken = _readers(source)
    if taken is None:
        return None
    dim, readers = taken
    chain: list[fx.Node] = []
    view = source
    while view.target not in VIEWS:
        producer = view.args[0] if view.op == "call_function" and view.args else None
        if not isinstance(producer, fx.Node) or len(producer.users) != 1:
            return None
        chain.insert(0, view)
        view = producer
    first = first_new_axis(view)
    steps = _track(len(shape_of(view)), chain)
    if first is None or steps is None:
        return None
    entries = steps[-1][1][dim] if steps else dim
    if not first <= entries < len(shape_of(view)) or shape_of(view)[entries] > _MOST_ENTRIES:
        return None
    return _Fused(view, first, entries, steps, tuple(readers))


def _readers(source: fx.Node) -> tuple[int, list[tuple[fx.Node, int]]] | None:
    """The axis that all users of a node take single entries of, and who takes which."""
    if not is_tensor(source) or not source.users:
        return None
    shape, users = shape_of(source), list(source.users)
    if len(users) == 1 and users[0].target is aten.unbind.int:
        items = [(item, item.args[1]) for item in users[0].users]
        return _argument(users[0], 1) % len(shape), items  # type: ignore[return-value]
    if any(user.target is not aten.select.int for user in users):
        return None
    dims = {_argument(user, 1) % len(shape) for user in users}
    if len(dims) != 1 or not all(isinstance(user.args[2], int) for user in users):
        return None
    dim = dims.pop()
    return dim, [(user, _argument(user, 2) % shape[dim]) for user in users]


def _argument(node: fx.Node, position: int) -> int:
    """An integer argument, 0 if it was left out."""
    value = node.args[position] if position < len(node.args) else 0
    assert isinstance(value, int)
    return value


def first_new_axis(view: fx.Node) -> int | None:
    """The first of the axes that the last axis of the view's input became, if that is so."""
    source = view.args[0]
    assert isinstance(source, fx.Node)
    last, sizes = len(shape_of(source)) - 1, shape_of(view)
    if last < 0 or last in dynamic_dims(source):
        return None
    width = shape_of(source)[last]
    found = None
    for first in reversed(range(len(sizes))):
        if first in dynamic_dims(view) or math.prod(sizes[first:]) > width:
            break
        found = first if math.prod(sizes[first:]) == width else found
    return found


def _track(rank: int, chain: list[fx.Node]) -> tuple[tuple[fx.Node, Labels], ...] | None:
    """Follow the axes of a view through nodes that move axes; None if one does more than that."""
    labels, fresh = list(range(rank)), rank
    steps = []
    for node in chain:
        moved = _move(node, labels, fresh)
        if moved is None:
            return None
        labels, fresh = moved, fresh + 1
        steps.append((node, labels))
    return tuple(steps)


def _move(node: fx.Node, labels: Labels, fresh: int) -> Labels | None:
    """The axes after one node; a new axis of size one is labelled `fresh`."""
    args: tuple[Any, ...] = node.args
    result = list(labels)
    match node.target:
        case aten.permute.default:
            result = [labels[dim] for dim in args[1]]
        case aten.transpose.int:
            result[args[1]], result[args[2]] = labels[args[2]], labels[args[1]]
        case aten.unsqueeze.default:
            result.insert(args[1] % (len(labels) + 1), fresh)
        case aten.squeeze.dim:
            if shape_of(args[0])[args[1]] == 1:
                del result[args[1]]
        case aten.contiguous.default if len(args) == 1 and not node.kwargs:
            pass
        case _:
            return None
    return result


def _separate(graph: fx.Graph, match: _Fused) -> bool:
    """Emit the separated form; take it back and say no if it would lie in memory otherwise."""
    prefix = prefix_of(match.view, match.first)
    if prefix is None:
        return False
    emitted: list[fx.Node] = []

    def add(target: Any, *args: Any) -> fx.Node:
        emitted.append(emit(graph, target, args, match.view))
        return emitted[-1]

    split = _split(match, prefix, add)
    pieces = [_piece(match, prefix, split, entry, reader, add) for reader, entry in match.readers]
    replacements = list(zip((reader for reader, _ in match.readers), pieces, strict=True))
    if any(layout_of(reader) != layout_of(piece) for reader, piece in replacements):
        for node in reversed(emitted):
            graph.erase_node(node)
        return False
    for reader, piece in replacements:
        reader.replace_all_uses_with(piece)
    return True


def _split(match: _Fused, prefix: list[Any], add: Add) -> fx.Node:
    """Split the channels into one stretch for each entry."""
    view, sizes = match.view, shape_of(match.view)
    before, count = sizes[match.first : match.entries], sizes[match.entries]
    width = math.prod(sizes[match.entries + 1 :])
    with view.graph.inserting_before(view):
        source: Any = view.args[0]
        if math.prod(before) > 1:
            # The entries are not the slowest axis: (h 3 d) first becomes h times (3 d).
            source = add(spelling_of(view), source, [*prefix, *before, count * width])
        last = len(shape_of(source)) - 1
        return add(aten.split_with_sizes.default, source, [width] * count, last)


def _piece(
    match: _Fused, prefix: list[Any], split: fx.Node, entry: int, reader: fx.Node, add: Add
) -> fx.Node:
    """What one reader got: its part of the channels, viewed and moved as before."""
    view, sizes = match.view, shape_of(match.view)
    with view.graph.inserting_before(reader):
        piece = add(operator.getitem, split, entry)
        wanted = list(view.meta["val"].shape)
        del wanted[match.entries]
        # As text: two free axes may have the same size in the example.
        if str(list(piece.meta["val"].shape)) != str(wanted):
            inner = [size for dim, size in enumerate(sizes) if dim != match.entries]
            piece = add(spelling_of(view), piece, [*prefix, *inner[match.first :]])
        for target, *args in _moves(match):
            piece = add(target, piece, *args)
    return piece


def spelling_of(view: fx.Node) -> OpOverload:
    """The op that views the channels as `view` does: one that may copy only where that may."""
    return aten.reshape.default if view.target is aten.reshape.default else aten.view.default


def prefix_of(view: fx.Node, first: int) -> list[Any] | None:
    """The view's sizes before `first` as arguments, or None if they cannot be spelled."""
    if view.target is not aten.unflatten.int:
        return list(view.args[1][:first])  # type: ignore[index, arg-type]
    sizes = [-1 if dim in dynamic_dims(view) else shape_of(view)[dim] for dim in range(first)]
    return sizes if sizes.count(-1) <= 1 else None


def _moves(match: _Fused) -> Iterator[tuple[Any, ...]]:
    """What is left of the movements for one entry: a call for each stretch between copies."""
    rank = len(shape_of(match.view))
    labels = [label for label in range(rank) if label != match.entries]
    pending = labels
    for node, axes in match.steps:
        pending = [label for label in axes if label != match.entries]
        if node.target is aten.contiguous.default:
            yield from _rearranged(labels, pending)
            yield (aten.contiguous.default,)
            labels = pending
    yield from _rearranged(labels, pending)


def _rearranged(labels: Labels, wanted: Labels) -> Iterator[tuple[Any, ...]]:
    """Squeeze, permute and unsqueeze, as far as needed, from one order of axes to another."""
    for dim in reversed(range(len(labels))):
        if labels[dim] not in wanted:
            yield aten.squeeze.dim, dim
    kept = [label for label in labels if label in wanted]
    order = [kept.index(label) for label in wanted if label in kept]
    if order != sorted(order):
        yield aten.permute.default, order
    for dim, label in enumerate(wanted):
        if label not in kept:
            yield aten.unsqueeze.default, dim


def layout_of(node: fx.Node) -> list[tuple[int, int]]:
    """Sizes and strides: where they agree, every kernel treats two tensors alike."""
    value: torch.Tensor = node.meta["val"]
    strides = [size if isinstance(size, int) else size.node.hint for size in value.stride()]
    # The stride of an axis of size one is never used.
    return [(n, stride if n > 1 else 0) for n, stride in zip(shape_of(node), strides, strict=True)]
