"""What a captured program takes: shapes, dtypes, values and relations between sizes, as data.

torch.export specialises a graph on its example: on the sizes that the model branched on, on every
value that is no tensor, on the dtypes. An `Interface` keeps what the graph was specialised on, so
that a call with anything else is refused at the door instead of answered wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError
from fxcompress.interface.leaves import (
    Leaf,
    Scalar,
    SizeInput,
    TensorInput,
    ValueInput,
)
from fxcompress.interface.sizes import Sizes, Term, term
from fxcompress.interface.words import explain, unbound

__all__ = [
    "Interface",
    "Leaf",
    "Scalar",
    "SizeInput",
    "SizeRange",
    "Sizes",
    "TensorInput",
    "ValueInput",
    "assumed",
    "assuming",
    "being_traced",
]


@dataclass(frozen=True)
class SizeRange:
    """The sizes that a free axis may have.

    Attributes:
        low: The smallest.
        high: The largest; None where there is none.
        equals: The expression over other sizes that gives this one; empty if it is independent.
        note: Why the range is no wider, for people.
    """

    low: int = 1
    high: int | None = None
    equals: str = ""
    note: str = ""

    def __contains__(self, size: int) -> bool:
        return self.low <= size and (self.high is None or size <= self.high)

    def __str__(self) -> str:
        if self.equals:
            return f"= {self.equals}"
        span = f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"
        return f"{span} ({self.note})" if self.note else span


@dataclass(frozen=True)
class Interface:
    """What the inputs of a program must be.

    Attributes:
        arguments: The names of the arguments, first those that were given by position.
        spec: The structure of ``(args, kwargs)``.
        inputs: What each of the flattened inputs was.
        sizes: The range of every free axis, by its name.
        conditions: What else must hold between sizes, as expressions over their names.
        note: Why the batch is fixed, where the model fixes it.
    """

    arguments: tuple[str, ...]
    spec: pytree.TreeSpec
    inputs: tuple[TensorInput | ValueInput | SizeInput, ...]
    sizes: Mapping[str, SizeRange] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.inputs) != self.spec.num_leaves:
            raise ValueError(f"{len(self.inputs)} inputs do not fill {self.spec.num_leaves} places")
        if len(self.arguments) != sum(map(len, self._children)):
            raise ValueError(f"{list(self.arguments)} are not the names of the arguments")
        named = {one for leaf in self.inputs for one in _names(leaf)}
        if named != set(self.sizes):
            raise ValueError(f"the sizes {sorted(self.sizes)} are not those named {sorted(named)}")
        assert self._conditions is not None
        assert self._derived is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> Interface:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # What is cached holds functions, which cannot be pickled.
        return Interface, tuple(getattr(self, one.name) for one in fields(self))

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse inputs that the graph was not captured for. Takes some microseconds.

        Raises:
            InputError: The message says which input, what was given and what was captured, and what
                to compile for a program that takes it.
        """
        leaves = self.flatten(args, kwargs)
        sizes: dict[str, int] = {}
        for leaf, value in zip(self.inputs, leaves, strict=True):
            if not leaf.fits(value, sizes):
                break
        else:
            if self.allows(sizes):
                return
        raise InputError(explain(self, leaves))

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs of one call, in the order of `inputs`.

        Raises:
            InputError: An argument is missing or unknown, or is built differently.
        """
        given = len(args)
        wanted = self.arguments[given:]
        if (
            given > len(self.arguments)
            or len(kwargs) != len(wanted)
            or not all(name in kwargs for name in wanted)
        ):
            raise InputError(unbound(self, args, kwargs))
        leaves: list[Any] = []
        values = (*args, *(kwargs[name] for name in wanted)) if wanted else args
        for name, child, value in zip(self.arguments, self._parts, values, strict=True):
            if child is None:
                leaves.append(value)
                continue
            try:
                leaves += child.flatten_up_to(value)
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"input '{name}' is built differently from the one that was captured: {error} "
                    "Give it in the same structure, or compile once more with this one"
                ) from error
        return leaves

    def allows(self, sizes: Sizes) -> bool:
        """Whether every named size is in its range and all relations hold."""
        return next(self.violations(sizes), None) is None

    def violations(self, sizes: Sizes) -> Iterator[str]:
        """What does not hold of these sizes: names of axes, and conditions."""
        for name, low, high in self._bounds:
            size = sizes[name]
            if size < low or (high is not None and size > high):
                yield name
        for name, expected in self._derived:
            if sizes[name] != expected(sizes):
                yield name
        for text, holds in self._conditions:
            if not _true(holds, sizes):
                yield text

    @property
    def independent(self) -> tuple[str, ...]:
        """The sizes that can be chosen; the others follow from them."""
        return tuple(name for name, one in self.sizes.items() if not one.equals)

    def complete(self, chosen: Sizes) -> dict[str, int]:
        """All sizes, given the independent ones."""
        return {**chosen, **{name: int(follows(chosen)) for name, follows in self._derived}}

    def sizes_of(self, leaves: Sequence[Any]) -> dict[str, int]:
        """The named sizes of flattened inputs that fit.

        Raises:
            InputError: They do not.
        """
        sizes: dict[str, int] = {}
        for leaf, value in zip(self.inputs, leaves, strict=True):
            if not leaf.fits(value, sizes):
                raise InputError(explain(self, list(leaves)))
        return sizes

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """For each tensor among the inputs, its free axes by name."""
        return tuple(
            {axis: size for axis, size in enumerate(leaf.shape) if isinstance(size, str)}
            for leaf in self.inputs
            if isinstance(leaf, TensorInput)
        )

    def cast(self, dtype_after: Callable[[torch.dtype], torch.dtype]) -> Interface:
        """The interface of the same program after its tensors were moved to other dtypes."""
        before = {leaf.dtype for leaf in self.inputs if isinstance(leaf, TensorInput)}
        after = {dtype: dtype_after(dtype) for dtype in before}
        if all(one is other for one, other in after.items()):
            return self
        return replace(self, inputs=tuple(leaf.cast(after) for leaf in self.inputs))

    @cached_property
    def _children(self) -> tuple[list[pytree.TreeSpec], list[pytree.TreeSpec]]:
        """The structures of the arguments by position and by name."""
        both = self.spec.children()
        if self.spec.type is not tuple or [one.type for one in both] != [tuple, dict]:
            raise ValueError("the structure of the inputs is not that of (args, kwargs)")
        return both[0].children(), both[1].children()

    @cached_property
    def _parts(self) -> tuple[pytree.TreeSpec | None, ...]:
        """The structure of every argument; None for one that is a single input."""
        positional, named = self._children
        return tuple(None if one.is_leaf() else one for one in (*positional, *named))

    @cached_property
    def _bounds(self) -> tuple[tuple[str, int, int | None], ...]:
        return tuple((name, one.low, one.high) for name, one in self.sizes.items())

    @cached_property
    def _derived(self) -> tuple[tuple[str, Term], ...]:
        chosen = set(self.independent)
        return tuple(
            (name, term(one.equals, chosen)) for name, one in self.sizes.items() if one.equals
        )

    @cached_property
    def _conditions(self) -> tuple[tuple[str, Term], ...]:
        return tuple((text, term(text, self.sizes)) for text in self.conditions)


def being_traced() -> bool:
    """Whether a call is traced, for export, a compiler or fx, and no inputs are there to check."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    )


_assuming: ContextVar[bool] = ContextVar("assuming", default=False)


def assuming() -> bool:
    """Whether checks of inputs are traced too: what they ask of sizes becomes a guard."""
    return _assuming.get()


@contextmanager
def assumed() -> Iterator[None]:
    """Trace the checks of inputs, so that a program captured once more keeps its interface."""
    token = _assuming.set(True)
    try:
        yield
    finally:
        _assuming.reset(token)


def _names(leaf: Leaf) -> Iterator[str]:
    if isinstance(leaf, TensorInput):
        yield from (size for size in leaf.shape if isinstance(size, str))
    elif isinstance(leaf, SizeInput):
        yield leaf.size


def _true(holds: Term, sizes: Sizes) -> bool:
    try:
        return bool(holds(sizes))
    except ZeroDivisionError:  # a quotient of sizes that are too small to have one
        return False
