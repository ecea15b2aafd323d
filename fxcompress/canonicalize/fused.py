"""Separate what one linear map computes for several readers, such as fused query, key and value.

The pattern is local: a view splits the last axis of a tensor and makes an axis of a few entries, the axes are moved
about, and every reader takes one entry of that axis. Taking the entries before the view gives each reader channels of
its own, so that they need not be cut alike:

    Before: ``unbind(permute(view(x, [b, n, 3, h, d]), [2, 0, 3, 1, 4]))``
    After:  ``permute(view(part, [b, n, h, d]), [0, 2, 1, 3])`` for each of ``split_with_sizes(x, [h*d] * 3, -1)``
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress.canonicalize.emit import emit
from fxcompress.graph import CapturedModule, aten, dynamic_dims, is_tensor, shape_of

_MOST_ENTRIES = 8
"""A longer axis is a range of like units (heads, positions), not a handful of different things."""

_VIEWS = {aten.view.default, aten.reshape.default, aten.unflatten.int}
Labels = list[int]


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
    """Split fused channels before the view that makes an axis of them; give the number of views so treated."""
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
    while view.target not in _VIEWS:
        producer = view.args[0] if view.op == "call_function" and view.args else None
        if not isinstance(producer, fx.Node) or len(producer.users) != 1:
            return None
        chain.insert(0, view)
        view = producer
    first = _first_new_axis(view)
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
    rank = len(shape_of(source))
    users = list(source.users)
    if len(users) == 1 and users[0].target is aten.unbind.int:
        dim = users[0].args[1] if len(users[0].args) > 1 else 0
        items = list(users[0].users)
        if not all(item.target is operator.getitem for item in items):
            return None
        return int(dim) % rank, [(item, int(item.args[1])) for item in items]  # type: ignore[arg-type]
    if any(user.target is not aten.select.int for user in users):
        return None
    dims = {int(user.args[1]) % rank for user in users}  # type: ignore[arg-type]
    if len(dims) != 1 or not all(isinstance(user.args[2], int) for user in users):
        return None
    dim = dims.pop()
    size = shape_of(source)[dim]
    return dim, [(user, int(user.args[2]) % size) for user in users]  # type: ignore[arg-type]


def _first_new_axis(view: fx.Node) -> int | None:
    """The first of the axes that multiply to the last axis of the view's input, if there are such axes."""
    source = view.args[0]
    assert isinstance(source, fx.Node)
    width, sizes = shape_of(source)[-1], shape_of(view)
    if len(shape_of(source)) - 1 in dynamic_dims(source):
        return None
    found = None
    for first in reversed(range(len(sizes))):
        if first in dynamic_dims(view) or math.prod(sizes[first:]) > width:
            break
        found = first if math.prod(sizes[first:]) == width else found
    return found


def _track(rank: int, chain: list[fx.Node]) -> tuple[tuple[fx.Node, Labels], ...] | None:
    """Follow the axes of a view through nodes that move axes; None if one of them does more than that."""
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
    rank, args = len(labels), node.args
    result = list(labels)
    match node.target:
        case aten.permute.default:
            result = [labels[dim] for dim in args[1]]  # type: ignore[union-attr, index]
        case aten.transpose.int:
            left, right = args[1], args[2]
            result[left], result[right] = labels[right], labels[left]  # type: ignore[index]
        case aten.unsqueeze.default:
            result.insert(args[1] % (rank + 1), fresh)  # type: ignore[operator, arg-type]
        case aten.squeeze.dim:
            if shape_of(node.args[0])[args[1]] == 1:  # type: ignore[arg-type, index]
                del result[args[1]]  # type: ignore[arg-type, index]
        case aten.contiguous.default if len(args) == 1 and not node.kwargs:
            pass
        case _:
            return None
    return result


def _separate(graph: fx.Graph, match: _Fused) -> bool:
    """Emit the separated form; take it back and say no if it would not lie in memory as before."""
    view, entries = match.view, match.entries
    prefix = _prefix(match)
    if prefix is None:
        return False
    before, after = shape_of(view)[match.first : entries], shape_of(view)[entries + 1 :]
    emitted: list[fx.Node] = []

    def add(target: Any, *args: Any) -> fx.Node:
        emitted.append(emit(graph, target, args, view))
        return emitted[-1]

    spelling = aten.reshape.default if view.target is aten.reshape.default else aten.view.default
    count, width = shape_of(view)[entries], math.prod(after)
    with graph.inserting_before(view):
        source = view.args[0]
        if math.prod(before) > 1:
            source = add(spelling, source, [*prefix, *before, count * width])
        last = len(shape_of(source)) - 1  # type: ignore[arg-type]
        split = add(aten.split_with_sizes.default, source, [width] * count, last)
    pieces = {}
    for reader, entry in match.readers:
        with graph.inserting_before(reader):
            piece = add(operator.getitem, split, entry)
            wanted = [*prefix, *before, *after]
            if len(shape_of(piece)) != len(wanted) or not _keeps_prefix(match):
                piece = add(spelling, piece, wanted)
            for step in _moves(match):
                piece = add(step[0], piece, *step[1:])
            pieces[reader] = piece
    if not all(_lies_like(piece, reader) for reader, piece in pieces.items()):
        for node in reversed(emitted):
            graph.erase_node(node)
        return False
    for reader, piece in pieces.items():
        reader.replace_all_uses_with(piece)
    return True


def _prefix(match: _Fused) -> list[Any] | None:
    """The sizes of the view's leading axes as it may spell them, or None if they cannot be spelled."""
    view = match.view
    if view.target is not aten.unflatten.int:
        return list(view.args[1][: match.first])  # type: ignore[index, arg-type]
    sizes = [-1 if dim in dynamic_dims(view) else shape_of(view)[dim] for dim in range(match.first)]
    return sizes if sizes.count(-1) <= 1 else None


def _keeps_prefix(match: _Fused) -> bool:
    source = match.view.args[0]
    assert isinstance(source, fx.Node)
    return shape_of(source)[:-1] == shape_of(match.view)[: match.first]


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


def _lies_like(piece: fx.Node, reader: fx.Node) -> bool:
    """Whether two nodes have the same shape and strides, so that every kernel treats them alike."""
    return _layout(piece) == _layout(reader)


def _layout(node: fx.Node) -> list[tuple[int, int]]:
    value: torch.Tensor = node.meta["val"]
    strides = [size if isinstance(size, int) else size.node.hint for size in value.stride()]
    # The stride of an axis of size one is never used.
    return [(n, stride if n > 1 else 0) for n, stride in zip(shape_of(node), strides, strict=True)]
