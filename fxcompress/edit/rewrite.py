"""The rewriter: the only place that edits a captured graph.

It applies a `Plan` to a copy of the module: parameters are transformed along their axes, every
integer in the graph that follows the size of an axis is mended, and shapes are noted anew. What a
plan does not touch is shared with the module it came from.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, Concat, Factor, leaves
from fxcompress.axes.transforms import Choice, Choices, kept_indices, size_of, transform
from fxcompress.canonicalize.norms import absorb_neutral_norms
from fxcompress.edit.check import check_plan
from fxcompress.edit.offset import add_offset
from fxcompress.edit.plan import Offset, Plan, Project, Reparametrize, Replace
from fxcompress.edit.shift import shift_consumers
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.lazy import selected, value_of
from fxcompress.graph.metadata import TensorMeta, dynamic_dims
from fxcompress.graph.parameters import Names, find_tensor, names_of, replace_tensor
from fxcompress.graph.schema import read
from fxcompress.rules import Binding

Kept = Mapping[str, tuple[Tensor | None, ...]]
REPARAMETRIZED = "reparametrized"
aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int)


@dataclass(frozen=True)
class Rewritten:
    """A module after a plan.

    Attributes:
        module: The new module.
        kept: For parameters and buffers of which units were only selected, the places that stayed
            on each axis (None: all).
        mixed: Parameters and buffers of which units were mixed by a matrix.
    """

    module: CapturedModule
    kept: Kept
    mixed: frozenset[str]


def rewrite(module: CapturedModule, coupling: Coupling, plan: Plan) -> Rewritten:
    """Apply `plan` to a copy of `module`.

    Raises:
        PlanError: The plan would break the program; the message names the group or parameter, the
            site and the reason.
    """
    check_plan(module, coupling, plan)
    new = clone_graph(module, compiled=False)
    names = names_of(new)
    for edit in plan.edits:
        if isinstance(edit, Replace):
            replace_tensor(new, names, edit.parameter, edit.value)
        elif isinstance(edit, Reparametrize):
            _reparametrize(new, edit)
    made: dict[str, Axes] = {}
    for edit in plan.edits:
        if isinstance(edit, Offset):
            made |= add_offset(new, coupling, edit)
            names = names_of(new)
    projects = [edit for edit in plan.edits if isinstance(edit, Project)]
    kept, mixed = _project(new, names, coupling, projects) if projects else ({}, frozenset())
    _cut_biases(new, names, made, projects)
    absorb_neutral_norms(new, [e.parameter for e in plan.edits if isinstance(e, Replace)])
    new.graph.lint()
    new.recompile()
    return Rewritten(new, kept, mixed)


# ---- projections


def _project(
    new: CapturedModule, names: Names, coupling: Coupling, projects: list[Project]
) -> tuple[Kept, frozenset[str]]:
    encoders = {edit.group.factor: edit.encoder for edit in projects}
    decoders = {edit.group.factor: edit.decoder for edit in projects}
    for edit in projects:
        if edit.shift is not None:
            shift_consumers(new, names, coupling, edit)
    kept: dict[str, tuple[Tensor | None, ...]] = {}
    mixed: set[str] = set()
    for name, axes in coupling.parameters.items():
        if any(leaf in encoders for expr in axes for leaf in leaves(expr)):
            choices = axis_choices(coupling, name, axes, encoders, decoders)
            old = find_tensor(new, name)
            assert old is not None
            if all(choice.selects for own in choices for choice in own.values()):
                pairs = zip(axes, choices, strict=True)
                kept[name] = tuple(kept_indices(expr, own) if own else None for expr, own in pairs)
                value = selected(old, kept[name])
            else:
                mixed.add(name)
                with torch.no_grad():
                    value = transform(value_of(old), axes, choices)
            replace_tensor(new, names, name, value)
    widths = {factor: choice.width for factor, choice in encoders.items()}
    _mend(new, coupling, widths)
    return kept, frozenset(mixed)


def _cut_biases(
    new: CapturedModule, names: Names, made: Mapping[str, Axes], projects: list[Project]
) -> None:
    """Biases that offsets made follow the units of their layers as any other does."""
    encoders = {edit.group.factor: edit.encoder for edit in projects}
    for name, (expr,) in made.items():
        own = {leaf: encoders[leaf] for leaf in leaves(expr) if leaf in encoders}
        old = find_tensor(new, name)
        assert old is not None
        replace_tensor(new, names, name, transform(value_of(old), (expr,), [own]))
        for node in (n for n in new.graph.find_nodes(op="get_attr") if n.target == name):
            widths = {factor: choice.width for factor, choice in own.items()}
            node.meta["val"] = TensorMeta((size_of(expr, widths),), old.dtype)


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


# ---- constants of the graph


def _mend(new: CapturedModule, coupling: Coupling, widths: Mapping[Factor, int]) -> None:
    nodes = {node.name: node for node in new.graph.nodes}
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


def _changes(axes: Axes, widths: Mapping[Factor, int]) -> bool:
    return any(leaf in widths for expr in axes for leaf in leaves(expr))


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
        return node.graph.call_function(operator.floordiv, (scaled, old // common))


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


# ---- reparametrisations


def _reparametrize(new: CapturedModule, edit: Reparametrize) -> None:
    """Read the parameter through a small module, wherever it is read."""
    leaf = edit.parameter.replace(".", "_")
    holder = new._modules.get(REPARAMETRIZED)
    while holder is not None and hasattr(holder, leaf):
        leaf += "_"  # a.b_c and a_b.c
    name = f"{REPARAMETRIZED}.{leaf}"
    new.add_submodule(name, edit.module)
    sources = [n for n in new.graph.find_nodes(op="get_attr") if n.target == edit.parameter]
    for source in sources:
        users = list(source.users)
        with new.graph.inserting_after(source):
            made = new.graph.call_module(name, (source,))
        made.meta["val"] = source.meta["val"]
        for user in users:
            user.replace_input_with(source, made)
