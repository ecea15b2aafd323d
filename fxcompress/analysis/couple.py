"""The coupling analysis: one walk over the graph, op rule by op rule, then its
constraints resolved.

Factors that rules unify move together. The result holds, for every tensor, its axes as expressions
over factors, and for every factor why it may not shrink, what mixes along it and which parameters
hold it in which role.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import fx, nn

from fxcompress.analysis.coupling import Coupling, resolve
from fxcompress.axes.expressions import Axes, Factor
from fxcompress.canonicalize.constants import is_constant
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import value_of
from fxcompress.graph.metadata import is_tensor, parameter_of, shape_of
from fxcompress.graph.parameters import names_of, tensor_called
from fxcompress.graph.through import keeps
from fxcompress.probe import Prober
from fxcompress.rules import Context, rule_for
from fxcompress.rules.attempt import attempt
from fxcompress.rules.context import Rule
from fxcompress.rules.create import unknown
from fxcompress.rules.pointwise import pointwise
from fxcompress.rules.registry import is_pointwise

__all__ = ["Coupling", "couple"]


def couple(module: CapturedModule, pin: Collection[str] = (), *, probe: bool = False) -> Coupling:
    """Read the whole graph once and resolve what was found.

    Args:
        module: A captured and canonicalised module. It is not changed.
        pin: Globs of parameter or node names whose sizes must not change; see `check_pins`.
        probe: Find out by experiment what ops without a rule do; see `fxcompress.probe`.
    """
    ctx = Context(module)
    labels: dict[Factor, tuple[str, int]] = {}
    parameters: dict[str, Axes] = {}
    otherwise: Rule = Prober() if probe else unknown
    for node in module.graph.nodes:
        _visit(ctx, node, parameters, labels, otherwise)
    called = _called(module) if pin else {}
    for pattern in pin:
        for node in (node for node in ctx.axes if _fits(pattern, called[node])):
            for axes in _tensors(ctx, node):
                ctx.freeze(axes, node, "pinned by the caller")
    return resolve(ctx, parameters, labels)


def check_pins(module: CapturedModule, pin: Collection[str]) -> None:
    """Refuse a pin that fits nothing; asked once, since passes may take away what it fits.

    Raises:
        PlanError: With the nearest names.
    """
    called = _called(module)
    for pattern in pin:
        if not any(_fits(pattern, names) for names in called.values()):
            every = sorted(set().union(*called.values()))
            near = ", ".join(get_close_matches(pattern, every, n=3, cutoff=0.0))
            raise PlanError(
                f"pin {pattern!r} fits no parameter or node; the nearest names are {near}"
            )


def _called(module: CapturedModule) -> dict[fx.Node, frozenset[str]]:
    """What each node is called: its own name, or every name of the parameter it reads."""
    names = names_of(module)
    return {
        node: names.get(parameter_of(node) or "", frozenset((node.name,)))
        for node in module.graph.nodes
    }


def _fits(pattern: str, names: frozenset[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _tensors(ctx: Context, node: fx.Node) -> tuple[Axes, ...]:
    """The axes of every tensor that `node` yields."""
    return ctx.axes[node] if ctx.many(node) else (ctx.of(node),)  # type: ignore[return-value]


def _visit(
    ctx: Context,
    node: fx.Node,
    parameters: dict[str, Axes],
    labels: dict[Factor, tuple[str, int]],
    otherwise: Rule,
) -> None:
    if node.op == "placeholder":
        if is_tensor(node):
            ctx.axes[node] = _input(ctx, node)
    elif node.op == "get_attr":
        name = parameter_of(node)
        if name is not None:
            ctx.axes[node] = parameters.get(name) or _parameter(ctx, node, name, labels)
            parameters[name] = ctx.axes[node]  # type: ignore[assignment]
            ctx.sources[node] = frozenset((name,))
            if not _can_be_zeroed(ctx, name):
                ctx.set_nonzero(node, ctx.of(node))
    elif node.op == "output":
        for operand in node.all_input_nodes:
            if operand in ctx.axes:
                for axes in _tensors(ctx, operand):
                    ctx.freeze(axes, node, "an output of the model")
    elif keeps(node):
        name = str(node.target)
        ctx.axes[node] = parameters[name] = _parameter(ctx, node, name, labels)
        ctx.sources[node] = frozenset((name,))
        words = f"{name} is kept in another form; finalize the program before it may shrink"
        ctx.freeze(ctx.of(node), node, words)
    elif node.op == "call_module":
        _reparametrized(ctx, node)
    else:
        _call(ctx, node, otherwise)


def _can_be_zeroed(ctx: Context, name: str) -> bool:
    """Whether masking makes units of a tensor zero: those of a parameter, or of a constant that is
    zero. A buffer or another constant is a number in the model's function, and one without a value
    (on the meta device) may be any.
    """
    tensor = tensor_called(ctx.module, name)
    if isinstance(tensor, nn.Parameter):
        return True
    if not is_constant(name):
        return False
    value = value_of(tensor)
    return not value.is_meta and not bool(value.any())


def _reparametrized(ctx: Context, node: fx.Node) -> None:
    """A parameter read through a module, which knows its shape."""
    words = "read through a module; finalize the program before it may shrink"
    for operand in node.all_input_nodes:
        ctx.freeze(ctx.of(operand), node, words)
        ctx.sources[node] = ctx.sources.get(operand, frozenset())
    (source,) = node.all_input_nodes
    same = shape_of(node) == shape_of(source)
    ctx.axes[node] = ctx.of(source) if same else ctx.opaque(node, words)


def _input(ctx: Context, node: fx.Node) -> Axes:
    return ctx.opaque(node, "an input of the model")


def _parameter(
    ctx: Context, node: fx.Node, name: str, labels: dict[Factor, tuple[str, int]]
) -> Axes:
    axes = tuple(ctx.space.fresh(size, f"{name}[{dim}]") for dim, size in enumerate(shape_of(node)))
    labels.update({expr: (name, dim) for dim, expr in enumerate(axes) if isinstance(expr, Factor)})
    return axes


def _call(ctx: Context, node: fx.Node, otherwise: Rule) -> None:
    operands = [operand for operand in node.all_input_nodes if operand in ctx.axes]
    rule = rule_for(node) or (pointwise if is_pointwise(node) else None)
    if rule is None and not operands and not is_tensor(node):
        return
    if not is_tensor(node) and not isinstance(node.meta.get("val"), (tuple, list)):
        return  # a number: the size of something
    ctx.axes[node] = attempt(ctx, node, rule or otherwise)
    sources = [ctx.sources.get(operand) for operand in operands]
    if sources and all(sources):
        ctx.sources[node] = frozenset().union(*(source for source in sources if source))
    ctx.spread(node)
