"""∂L/∂D: what a unit's gradient says about the signal that D would let through.

Beside an activation a stands ψ(x) = D·x - D̂·x + a(x) with D = D̂, which changes neither the outputs
nor any other gradient; then ∂L/∂D = Σ g·x over samples and positions, with g = ∂L/∂ψ. `inject` puts
ψ into a graph, as the paper has it; `taps` sums g·x without touching one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Axes, leaves
from fxcompress.graph.captured import CapturedModule, aten, clone_graph
from fxcompress.graph.metadata import TensorMeta, dtype_of, shape_of
from fxcompress.graph.parameters import set_tensor
from fxcompress.graph.schema import packet_of
from fxcompress.passes.ippro.targets import Place, Target
from fxcompress.program import Program
from fxcompress.stats import Gradients, gradients, unit_signals

HOLDER = "injected"
Signals = dict[tuple[ChannelGroup, Place], Tensor]
"""∂L/∂D of every unit and place, shape (cells, units, places), summed over samples' means."""


@dataclass(frozen=True, eq=False)
class Injected:
    """A program with ψ in the place of activations.

    Attributes:
        program: A copy of the graph over the same tensors.
        scales: The names of D, by output node of the activation.
        nodes: What was added.
    """

    program: Program
    scales: Mapping[Place, str]
    nodes: tuple[str, ...]


def inject(program: Program, places: Iterable[Place], axes: Mapping[str, set[int]]) -> Injected:
    """Add D·x - D̂·x to the outputs of activations, in a copy of the graph.

    It is computed as (D - D̂)·x, so that it is zero to the last bit, and so is its gradient for x.

    Args:
        program: Left as it is.
        places: Where.
        axes: For each place's input node the axes along which D varies.
    """
    module = clone_graph(program.module)
    scales: dict[Place, str] = {}
    added: list[str] = []
    for number, place in enumerate(dict.fromkeys(places)):
        names = f"{HOLDER}.d{number}", f"{HOLDER}.d_hat{number}"
        added += _inject(module, place, names, axes[place.input])
        scales[place] = names[0]
    module.graph.lint()
    module.recompile()
    return Injected(replace(program, module=module), scales, tuple(added))


def _inject(
    module: CapturedModule, place: Place, names: tuple[str, str], axes: set[int]
) -> Iterator[str]:
    """Inject at one place, and give the names of what was added, in the order of the graph."""
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    x, y = nodes[place.input], nodes[place.output]
    shape = [size if dim in axes else 1 for dim, size in enumerate(shape_of(x))]
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    source = x
    if packet_of(y).endswith("_"):  # it writes to x
        with graph.inserting_before(y):
            source = graph.call_function(aten.clone.default, (x,))
            source.meta["val"] = x.meta["val"]
    with graph.inserting_after(y):
        out = graph.call_function(aten.add.Tensor, (y, y))
    y.replace_all_uses_with(out, lambda user: user is not out)
    with graph.inserting_before(out):
        scales = []
        for name in names:
            ones = torch.ones(shape, dtype=dtype_of(x), device=device)
            set_tensor(module, name, nn.Parameter(ones))
            scales.append(graph.get_attr(name))
        gap = graph.call_function(aten.sub.Tensor, tuple(scales))
        passed = graph.call_function(aten.mul.Tensor, (source, gap))
    out.args = (y, passed)
    for node in (passed, out):
        node.meta["val"] = x.meta["val"]
    for node in (*scales, gap):
        node.meta["val"] = TensorMeta(tuple(shape), dtype_of(x))
    copied = [] if source is x else [source]
    return (node.name for node in (*copied, *scales, gap, passed, out))


def remove(injected: Injected) -> Program:
    """The program without what `inject` added: its graph is as it was, to the letter."""
    module = clone_graph(injected.program.module)
    wanted = set(injected.nodes)
    for node in reversed(list(module.graph.nodes)):
        if node.name in wanted:
            if node.users:
                node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.delete_submodule(HOLDER)
    module.recompile()
    return replace(injected.program, module=module)


def by_graph(
    program: Program, targets: Iterable[Target], names: Iterable[str], **options: object
) -> tuple[Gradients, Signals]:
    """Gradients of parameters, and ∂L/∂D as the gradient of an injected parameter."""
    wanted = {(target.group, place) for target in targets for place in target.places}
    shapes: dict[str, set[int]] = {}
    for group, place in wanted:
        shapes.setdefault(place.input, set()).update(_varies(_axes(program, place), group))
    made = inject(program, (place for _, place in wanted), shapes)
    found = gradients(made.program, [*names, *made.scales.values()], **options)  # type: ignore[arg-type]
    signals = {
        (group, place): _lined(found.mean[made.scales[place]], _axes(program, place), group)
        for group, place in wanted
    }
    return found, signals


def by_hooks(
    program: Program, targets: Iterable[Target], names: Iterable[str], **options: object
) -> tuple[Gradients, Signals]:
    """Gradients of parameters, and ∂L/∂D as Σ g·x where hooks see both."""
    wanted = {(target.group, place) for target in targets for place in target.places}
    sums: Signals = {}
    taps = {
        (place.input, place.output): _tap(
            program, place, {g for g, p in wanted if p == place}, sums
        )
        for _, place in wanted
    }
    found = gradients(program, list(names), taps, **options)  # type: ignore[arg-type]
    return found, {key: total / found.samples for key, total in sums.items()}


def _tap(
    program: Program, place: Place, groups: Iterable[ChannelGroup], sums: Signals
) -> Callable[[Tensor, Tensor], None]:
    axes = _axes(program, place)

    def tap(value: Tensor, grad: Tensor) -> None:
        for group in groups:
            own = _lined((value * grad).double(), axes, group)
            sums[group, place] = sums.get((group, place), 0) + own

    return tap


def _axes(program: Program, place: Place) -> Axes:
    return program.analysis.coupling.axes[place.input]


def _varies(axes: Axes, group: ChannelGroup) -> set[int]:
    """The axes that hold the units and what numbers their cells."""
    wanted = {group.factor, *group.over}
    return {dim for dim, expr in enumerate(axes) if not wanted.isdisjoint(leaves(expr))}


def _lined(value: Tensor, axes: Axes, group: ChannelGroup) -> Tensor:
    return unit_signals(value, axes, group.factor, group.over).sum(-1).double()
