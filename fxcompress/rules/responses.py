"""What an op makes of zeros, and of sums, found by running it with its own arguments.

An op that acts on each index of an axis alone gives at a masked unit what it gives wherever its
masked operands are zero. So it is run on small operands: zeros for those, random values for the
others, its numbers as they are in the graph. The same way one sees whether a linear map along an
axis may pass through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.axes.expressions import Factor
from fxcompress.canonicalize.constants import constant_of
from fxcompress.graph.metadata import dtype_of, is_size, is_tensor, shape_of
from fxcompress.rules.context import Context

Response = Literal["zero", "nonzero", "singular"]
Factors = frozenset[Factor]
_TRIALS = 8
_SMALL = 3
"""Sizes of axes in a run; each of its entries is a case of its own."""
_UNDEFINED = ("aten::empty", "aten::new_empty")
"""Ops whose result is whatever the memory holds, by chance zeros."""


def masked_factors(ctx: Context, node: fx.Node, every: Factors) -> tuple[Factors, Factors]:
    """What masked units of the factors `every` are in the result of an element-wise node.

    Returns:
        The factors whose masked units may not be zero there, and those where they are not finite.
    """
    operands = [operand for operand in node.all_input_nodes if ctx.tensor(operand)]
    zero = {op: ctx.factors(ctx.of(op)) - ctx.nonzero_factors(op) for op in operands}
    nonzero, singular = set[Factor](), set[Factor]()
    for masked, factors in _by_holders(zero, every):
        found = response(ctx, node, masked)
        nonzero |= factors if found != "zero" else set()
        singular |= factors if found == "singular" else set()
    return frozenset(nonzero), frozenset(singular)


def nonlinear_factors(ctx: Context, node: fx.Node, every: Factors) -> Factors:
    """The factors along which a linear map does not commute with an element-wise node."""
    operands = [operand for operand in node.all_input_nodes if ctx.tensor(operand)]
    held = {op: ctx.factors(ctx.of(op)) for op in operands}
    found = (own for linear, own in _by_holders(held, every) if not is_linear(ctx, node, linear))
    return frozenset[Factor]().union(*found)


def _by_holders(
    held: Mapping[fx.Node, Factors], every: Factors
) -> Iterator[tuple[frozenset[fx.Node], set[Factor]]]:
    """The factors, together where the same operands hold them."""
    groups: dict[frozenset[fx.Node], set[Factor]] = {}
    for factor in every:
        holders = frozenset(op for op, own in held.items() if factor in own)
        groups.setdefault(holders, set()).add(factor)
    yield from groups.items()


def response(ctx: Context, node: fx.Node, masked: frozenset[fx.Node]) -> Response:
    """What `node` gives where the operands `masked` are zero and the others are anything.

    ``singular`` is what is not finite there, and is elsewhere. A node that cannot be run alone is
    taken to give something.
    """
    run = _Run.of(ctx, node)
    if run is None or str(node.target).replace(".", "::", 1).startswith(_UNDEFINED):
        return "nonzero"
    found: Response = _remembered(
        ("zero", *run.key(masked)), lambda: _response(run, masked), "nonzero"
    )
    return found


def is_linear(ctx: Context, node: fx.Node, linear: frozenset[fx.Node]) -> bool:
    """Whether `node` is linear in the operands `linear` together, the others being anything."""
    run = _Run.of(ctx, node)
    if run is None or not linear or not run.result.is_floating_point:
        return False
    found: bool = _remembered(("linear", *run.key(linear)), lambda: _is_linear(run, linear), False)
    return found


_FOUND: dict[Any, Any] = {}


def _remembered(key: Any, ask: Callable[[], Any], otherwise: Any) -> Any:
    """The answer for a call like this one, asked once; `otherwise` where the call fails."""
    if key not in _FOUND:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                _FOUND[key] = ask()
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
            _FOUND[key] = otherwise
    return _FOUND[key]


class _Run:
    """A call with small operands in place of its own."""

    def __init__(self, node: fx.Node, constants: Mapping[fx.Node, Tensor]) -> None:
        self.node, self.constants = node, constants
        self.operands = [operand for operand in node.all_input_nodes if is_tensor(operand)]

    @staticmethod
    def of(ctx: Context, node: fx.Node) -> _Run | None:
        """None where an operand is neither a tensor nor a size."""
        if node.op != "call_function":
            return None
        if not all(is_tensor(operand) or is_size(operand) for operand in node.all_input_nodes):
            return None
        given = ((operand, constant_of(ctx.module, operand)) for operand in node.all_input_nodes)
        known = ((op, c) for op, c in given if c is not None)
        return _Run(node, {op: c for op, c in known if c.numel() == 1})

    @property
    def result(self) -> torch.dtype:
        """The element type of what the node yields."""
        return dtype_of(self.node)

    def key(self, chosen: frozenset[fx.Node]) -> tuple[Any, ...]:
        """Equal for calls that respond alike."""
        names = dict.fromkeys(self.node.all_input_nodes, "a size")
        names |= {node: f"operand {number}" for number, node in enumerate(self.operands)}
        kinds = tuple(
            (dtype_of(node), _small(node), node in chosen, _item(self.constants.get(node)))
            for node in self.operands
        )
        args = fx.node.map_arg((self.node.args, self.node.kwargs), names.__getitem__)
        return self.node.target, repr(args), kinds

    def draws(
        self, chosen: frozenset[fx.Node], zeros: bool = False
    ) -> Iterator[dict[fx.Node, Tensor]]:
        """Random operands, positive where they are `chosen`, and elsewhere, where `zeros` are asked
        for, with some zeros among them; constants of one entry as they are.
        """
        for trial in range(_TRIALS):
            generator = torch.Generator().manual_seed(trial)
            yield {
                node: self.constants[node].cpu()
                if node in self.constants and node not in chosen
                else _random(node, generator, node in chosen, zeros)
                for node in self.operands
            }

    def __call__(self, values: Mapping[fx.Node, Tensor]) -> Tensor:
        """The first result, on copies of the values."""
        own = {node: value.clone() for node, value in values.items()}
        given = fx.node.map_arg(
            (self.node.args, self.node.kwargs), lambda node: own.get(node, _SMALL)
        )
        args, kwargs = pytree.tree_map_only(torch.device, _cpu, given)
        result: Tensor = pytree.tree_leaves(self.node.target(*args, **kwargs))[0]  # type: ignore[operator]
        return result


def _response(run: _Run, masked: frozenset[fx.Node]) -> Response:
    zero, singular, seen = True, False, not masked
    for values in run.draws(masked, zeros=True):
        usual = run(values)
        found = run(values | {node: torch.zeros_like(values[node]) for node in masked})
        usable = torch.isfinite(usual) if masked else torch.ones_like(found, dtype=torch.bool)
        seen = seen or bool(usable.any())
        zero = zero and not bool((found != 0)[usable].any())
        singular = singular or (bool(masked) and not bool(torch.isfinite(found[usable]).all()))
    if singular:
        return "singular"
    return "zero" if zero and seen else "nonzero"


def _is_linear(run: _Run, linear: frozenset[fx.Node]) -> bool:
    generator, before = torch.Generator().manual_seed(0), torch.get_rng_state()
    largest = math.log10(torch.finfo(run.result).max) / 2
    draws = list(run.draws(frozenset()))
    for values, others in zip(draws, draws[1:] + draws[:1], strict=True):
        first, second = torch.randn(2, generator=generator, dtype=torch.float64).tolist()
        single, double, mixed = dict(values), dict(values), dict(values)
        for node in linear:
            if not (values[node].is_floating_point() or values[node].is_complex()):
                return False
            # Magnitudes from far apart: what is cut off beyond a bound is not linear.
            scale = (
                10.0 ** torch.empty(()).uniform_(-3, min(9, largest), generator=generator).item()
            )
            single[node], double[node] = values[node] * scale, others[node] * scale
            mixed[node] = first * single[node] + second * double[node]
        parts = first * run(single), second * run(double)
        if not _agree(run(mixed), parts):
            return False
    return torch.equal(before, torch.get_rng_state())  # what draws does otherwise every time


def _agree(found: Tensor, parts: Sequence[Tensor]) -> bool:
    if not (found.is_floating_point() or found.is_complex()):
        return False
    size = sum(part.abs() for part in parts)
    allowed = 64 * torch.finfo(found.dtype).eps * size  # a few roundings of each part
    return bool(((found - sum(parts)).abs() <= allowed).all())


def _small(node: fx.Node) -> tuple[int, ...]:
    return tuple(min(size, _SMALL) for size in shape_of(node))


def _item(value: Tensor | None) -> Any:
    return None if value is None else repr(value.reshape(()).item())


def _random(
    node: fx.Node, generator: torch.Generator, positive: bool, zeros: bool = False
) -> Tensor:
    """Values of both signs, with `zeros` among them or none, or positive; double where real."""
    size, dtype = _small(node), dtype_of(node)
    if dtype == torch.bool:
        return torch.randint(2, size, generator=generator).bool()
    sign = torch.ones(size, dtype=torch.int64)
    if not positive:
        sign = torch.randint(2, size, generator=generator) * 2 - 1
        if zeros:
            sign = sign * torch.randint(3, size, generator=generator).clamp(max=1)
    if not (dtype.is_floating_point or dtype.is_complex):
        return (torch.randint(1, 4, size, generator=generator) * sign).to(dtype)
    values = (0.25 + 2 * torch.rand(size, generator=generator, dtype=torch.float64)) * sign
    return values.to(torch.complex128) if dtype.is_complex else values


def _cpu(_device: torch.device) -> torch.device:
    return torch.device("cpu")
