"""The change of widths: every parameter along its axes, then every integer of the graph that
follows the size of an axis, and the shapes that are noted in it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, Concat, Factor, leaves
from fxcompress.axes.transforms import Choice, Choices, kept_indices, size_of, transform
from fxcompress.edit.context import Context
from fxcompress.edit.trainable import read_projected
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import selected, value_of
from fxcompress.graph.metadata import TensorMeta, dynamic_dims
from fxcompress.graph.schema import read
from fxcompress.rules import Binding

Kept = Mapping[str, tuple[Tensor | None, ...]]
aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int)


def change_widths(context: Context) -> tuple[Kept, frozenset[str]]:
    """Carry out the projections that edits have left in `context`.

    Returns:
        For parameters and buffers of which units were only selected, the places that stayed on each
        axis (None: all); and the names of those of which units were mixed.
    """
    kept: dict[str, tuple[Tensor | None, ...]] = {}
    mixed: set[str] = set()
    trained: dict[str, Axes] = {}
    for name, axes in context.coupling.parameters.items():
        if _changes(axes, context.encoders):
            choices = axis_choices(context.coupling, name, axes, context.encoders, context.decoders)
            old = context.tensor(name)
            if isinstance(old, nn.Parameter) and _changes(axes, context.trained):
                trained[name] = axes
                continue
            if all(choice.selects for own in choices for choice in own.values()):
                pairs = zip(axes, choices, strict=True)
                kept[name] = tuple(kept_indices(expr, own) if own else None for expr, own in pairs)
                value = selected(old, kept[name])
            else:
                mixed.add(name)
                with torch.no_grad():
                    value = transform(value_of(old), axes, choices)
            context.replace(name, value)
    widths = {factor: choice.width for factor, choice in context.encoders.items()}
    if widths:
        mend(context.module, context.coupling, widths)
    _cut_made(context, widths)
    for name, axes in trained.items():
        read_projected(context, name, axes)
    return kept, frozenset(mixed | trained.keys())


def axis_choices(
    coupling: Coupling, name: str, axes: Axes, encoders: Choices, decoders: Choices
) -> list[dict[Factor, Choice]]:
    """For each axis of a parameter, what becomes of its factors: decoded where contracted."""
    found: list[dict[Factor, Choice]] = []
    for dim, expr in enumerate(axes):
        own: dict[Factor, Choice] = {}
        for leaf in leaves(expr):
            if leaf in encoders:
                contracted = (name, dim, "contract") in coupling.roles.get(leaf, ())
                own[leaf] = decoders[leaf] if contracted else encoders[leaf]
        found.append(own)
    return found


def _cut_made(context: Context, widths: Mapping[Factor, int]) -> None:
    """Parameters that edits made follow the units on their axes as any other does."""
    for name, axes in context.made.items():
        if not _changes(axes, widths):
            continue
        choices = [{f: context.encoders[f] for f in leaves(e) if f in widths} for e in axes]
        old = context.tensor(name)
        context.replace(name, transform(value_of(old), axes, choices))
        shape = tuple(size_of(expr, widths) for expr in axes)
        for node in (n for n in context.module.graph.find_nodes(op="get_attr") if n.target == name):
            node.meta["val"] = TensorMeta(shape, old.dtype)


# ---- constants of the graph


def mend(module: CapturedModule, coupling: Coupling, widths: Mapping[Factor, int]) -> None:
    """Set every integer argument and every noted shape to what it is at these widths, in place."""
    nodes = {node.name: node for node in module.graph.nodes}
    for binding in coupling.bindings:
        if _changes((binding.expr,), widths):
            _mend_argument(nodes[binding.node], binding, widths)
    for name, axes in coupling.axes.items():
        if _changes(axes, widths):
            nodes[name].meta["val"] = _meta(nodes[name], axes, widths)
    for name, many in coupling.outputs.items():
        if any(_changes(axes, widths) for axes in many):
            nodes[name].meta["val"] = tuple(
                TensorMeta(tuple(size_of(e, widths) for e in axes), value.dtype, _dynamic(value))
                for axes, value in zip(many, nodes[name].meta["val"], strict=True)
            )


def _changes(axes: Axes, changed: Mapping[Factor, object]) -> bool:
    return any(leaf in changed for expr in axes for leaf in leaves(expr))


def _meta(node: fx.Node, axes: Axes, widths: Mapping[Factor, int]) -> TensorMeta:
    return TensorMeta(
        tuple(size_of(expr, widths) for expr in axes), node.meta["val"].dtype, dynamic_dims(node)
    )


def _dynamic(value: Any) -> frozenset[int]:
    if isinstance(value, TensorMeta):
        return value.dynamic
    return frozenset(dim for dim, size in enumerate(value.shape) if not isinstance(size, int))


def _mend_argument(node: fx.Node, binding: Binding, widths: Mapping[Factor, int]) -> None:
    """Set an integer argument to the new size of its expression; -1 and open ends stay."""
    value: Any = read(node, binding.path)
    if isinstance(value, fx.Node):
        _write(node, binding.path, _mended_size(node, value, binding, widths))
    elif value != -1 and value <= binding.expr.size:
        _write(node, binding.path, binding.sign * size_of(binding.expr, widths))


def _mended_size(
    node: fx.Node, value: fx.Node, binding: Binding, widths: Mapping[Factor, int]
) -> int | fx.Node:
    """A size that the graph computes from the inputs: a view infers it, any other op scales it."""
    siblings: Any = read(node, binding.path[:-1]) if len(binding.path) > 1 else ()
    if node.target in VIEWS and -1 not in siblings:
        return -1
    if isinstance(binding.expr, Concat):
        raise PlanError(
            f"node '{node.name}' ({node.target}) adds a size of the inputs to a width that changes "
            f"(argument {binding.path}); exclude the layers that feed it"
        )
    old, new = binding.expr.size, size_of(binding.expr, widths)
    common = gcd(old, new)
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(operator.mul, (value, new // common))
        mended = node.graph.call_function(operator.floordiv, (scaled, old // common))
    scaled.meta["val"] = value.meta["val"] * (new // common)
    mended.meta["val"] = scaled.meta["val"] // (old // common)
    return mended


def _write(node: fx.Node, path: tuple[int | str, ...], value: int | fx.Node) -> None:
    head, *rest = path
    if rest:
        items: list[Any] = list(read(node, (head,)))
        items[int(rest[0])] = value
        new: Any = items
    else:
        new = value
    if isinstance(head, int):
        node.update_arg(head, new)
    else:
        node.update_kwarg(head, new)
