"""One op taken out of its graph: whether it may be run by itself, on what, and how."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.effects import has_effects
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dtype_of, example_shape
from fxcompress.graph.schema import schema_of
from fxcompress.rules.context import Context

LARGEST = 2**20
"""Elements of all operands and results of one run, at most."""
SLOWEST = 0.25
"""CPU seconds that one run may take."""

UNSUITABLE = {
    torch.Tag.nondeterministic_seeded: "it draws random numbers",
    torch.Tag.data_dependent_output: "its result is read from values",
    torch.Tag.dynamic_output_shape: "the shape of its result follows values",
    torch.Tag.inplace_view: "it changes its operand in place",
    torch.Tag.maybe_aliasing_or_mutating: "it may change its operands",
}


class ProbeError(Exception):
    """An op cannot be probed; the message is the reason."""


Draw = Mapping[int, Tensor]
"""Values of the operands, by number."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """An op with everything that a run of it needs.

    Attributes:
        node: The call in the graph; only what it calls and its arguments are read.
        operands: The nodes of its tensor operands, each once.
        sizes: The shapes of the operands.
        dtypes: Their element types.
        shapes: The shapes of the results.
        device: Where the op runs.
    """

    node: fx.Node
    operands: tuple[fx.Node, ...]
    sizes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    device: torch.device
    _numbers: Mapping[fx.Node, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", {n: i for i, n in enumerate(self.operands)})

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that are the same experiment."""
        names = {node: f"operand {number}" for node, number in self._numbers.items()}
        arguments = fx.node.map_arg((self.node.args, self.node.kwargs), names.__getitem__)
        return self.node.target, repr(arguments), self.sizes, self.dtypes, self.shapes

    def draw(self, generator: torch.Generator, kind: int) -> dict[int, Tensor]:
        """Random operands: normal for an even `kind`, positive for an odd one."""
        return {
            number: random_tensor(size, dtype, generator, kind).to(self.device)
            for number, (size, dtype) in enumerate(zip(self.sizes, self.dtypes, strict=True))
        }

    def run(self, draw: Draw) -> tuple[Tensor, ...]:
        """The op's results on copies of the operands, so that no run can disturb another.

        Raises:
            ProbeError: The op raised an error, or it wrote into an operand.
        """
        copies = {node: draw[number].clone() for node, number in self._numbers.items()}
        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), copies.__getitem__)
        try:
            with torch.no_grad():
                results = pytree.tree_leaves(self.node.target(*args, **kwargs))  # type: ignore[operator]
        except Exception as error:  # code of others may raise anything
            raise ProbeError(f"it fails on random operands ({_line(error)})") from error
        if any(result.layout != torch.strided for result in results):
            raise ProbeError("its result is no dense tensor")
        for node, number in self._numbers.items():
            if not same(copies[node], draw[number]).all():
                raise ProbeError("it writes into its operands")
        return tuple(result.clone() for result in results)

    def settle(self, draw: Draw) -> None:
        """See that the op is fast, keeps the shape of the node, and does the same twice.

        Raises:
            ProbeError: It does not.
        """
        first = self.run(draw)  # this run may load or compile
        start = time.process_time()
        second = self.run(draw)
        seconds = time.process_time() - start
        if seconds > SLOWEST:
            raise ProbeError(f"one run takes {seconds:.2g} s of CPU time, more than {SLOWEST}")
        if tuple(tuple(result.shape) for result in first) != self.shapes:
            raise ProbeError("the shape of its result follows values")
        if not all(same(a, b).all() for a, b in zip(first, second, strict=True)):
            raise ProbeError("two runs on the same operands differ")


def refusal(ctx: Context, node: fx.Node) -> str | None:
    """Why the op of `node` may not be run by itself, or None."""
    target = node.target
    if not isinstance(target, OpOverload):
        return "it is no operator of torch's dispatcher"
    schema = schema_of(node)
    if schema.is_mutable or has_effects(target):
        return "it has side effects"
    if any(one.alias_info is not None for one in chain(schema.arguments, schema.returns)):
        return "its result may share memory with an operand"
    unsuitable = [words for tag, words in UNSUITABLE.items() if tag in target.tags]
    if unsuitable:
        return unsuitable[0]
    results = _results(node)
    if not results or not all(hasattr(result, "shape") for result in results):
        return "it does not yield tensors alone"
    if not all(ctx.tensor(operand) for operand in node.all_input_nodes):
        return "an argument of it is computed from sizes, or is several tensors"
    if any(_counts(dtype_of(operand)) for operand in node.all_input_nodes):
        return "an operand holds integers; as indices, random ones could reach out of memory"
    shapes = [*map(ctx.shape, node.all_input_nodes), *map(example_shape, results)]
    elements = sum(map(prod, shapes))
    if elements > LARGEST:
        return f"it works on {elements:,} elements, more than {LARGEST:,}"
    return None


def experiment(ctx: Context, node: fx.Node) -> Experiment:
    """What a run of the op of `node` needs."""
    operands = tuple(node.all_input_nodes)
    return Experiment(
        node=node,
        operands=operands,
        sizes=tuple(map(ctx.shape, operands)),
        dtypes=tuple(map(dtype_of, operands)),
        shapes=tuple(map(example_shape, _results(node))),
        device=_device(ctx.module),
    )


def _results(node: fx.Node) -> tuple[Any, ...]:
    """What a node yields, one level deep."""
    value = node.meta.get("val")
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _counts(dtype: torch.dtype) -> bool:
    """Whether values of this type may be indices or sizes."""
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _device(module: CapturedModule) -> torch.device:
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"


def random_tensor(
    size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, kind: int
) -> Tensor:
    """Random values of any dtype, made on the CPU so that they are the same everywhere."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(2, size, generator=generator).to(dtype)
    if kind % 2:
        return (torch.rand(size, generator=generator, dtype=torch.float64) + 0.25).to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(size, generator=generator, dtype=wide).to(dtype)


def same(first: Tensor, second: Tensor) -> Tensor:
    """Where two tensors hold the same values, NaN being equal to itself."""
    return (first == second) | ((first != first) & (second != second))
