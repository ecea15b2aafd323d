"""Why inputs do not go with a program, in words: what was given, what was captured, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxcompress.interface.leaves import TensorInput, ValueInput, spell

if TYPE_CHECKING:
    from fxcompress.interface import Interface

_MOST = 3


def unbound(interface: Interface, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The message for arguments that are missing, too many or unknown."""
    names = interface.arguments
    taken = f"the program takes {len(names)} argument(s): {', '.join(names)}"
    if len(args) > len(names):
        return f"{len(args)} arguments were given by position, but {taken}"
    twice = [name for name in names[: len(args)] if name in kwargs]
    if twice:
        return f"argument '{twice[0]}' was given by position and by name; {taken}"
    lines = [
        f"argument '{name}' is missing; it was captured as {_captured(interface, place)}"
        for place, name in enumerate(names)
        if place >= len(args) and name not in kwargs
    ]
    lines += [
        f"argument '{name}' = {spell(value)} was not there when the program was captured; "
        "compile once more with it among the inputs"
        for name, value in kwargs.items()
        if name not in names
    ]
    return "\n".join([*lines, taken])


def explain(interface: Interface, leaves: list[Any]) -> str:
    """The message for inputs that do not fit, with all that is wrong with them."""
    lines = list(_differences(interface, leaves))
    if not lines:
        lines = list(_wrong_sizes(interface, leaves))
    return "\n".join(["the program was not captured for these inputs:", *lines])


def _differences(interface: Interface, leaves: list[Any]) -> Iterator[str]:
    """Inputs of another kind, dtype, value or fixed size."""
    fixed: dict[str, list[int]] = {}
    for leaf, value in zip(interface.inputs, leaves, strict=True):
        found = leaf.difference(value)
        if found is None:
            continue
        line = f"  {_title(interface, leaf.name)} is {found}; captured: {leaf.describe()}"
        if isinstance(leaf, ValueInput):
            line += (
                f"; the graph holds for that value only and no dynamic= frees it: "
                f"compile once more with {leaf.name}={found}"
            )
        elif isinstance(leaf, TensorInput) and isinstance(value, Tensor):
            if value.dtype is not leaf.dtype:
                line += "; convert it, move the program with .to(dtype), or compile with that dtype"
            elif value.ndim == len(leaf.shape):
                fixed[leaf.name] = leaf.wrong_axes(value)
        yield line
    if fixed:
        yield f"  to free what was fixed, compile with dynamic={_freeing(interface, fixed)}"
        if interface.note and any(0 in axes for axes in fixed.values()):
            yield f"  the batch was fixed because: {interface.note}"


def _freeing(interface: Interface, fixed: Mapping[str, list[int]]) -> dict[str, dict[int, str]]:
    """The mapping for ``dynamic=`` that frees these axes beside those that are free."""
    free: dict[str, dict[int, str]] = {}
    names: dict[int, str] = {}  # what had one size is one size, as a length and its mask
    taken = "batch" in interface.sizes
    for leaf in interface.inputs:
        if not isinstance(leaf, TensorInput):
            continue
        axes: dict[int, str] = {}
        for axis, size in enumerate(leaf.shape):
            if isinstance(size, str):
                axes[axis] = size
            elif axis in fixed.get(leaf.name, ()):
                usual = f"size_{len(names) + 1}" if axis or taken else "batch"
                axes[axis] = names.setdefault(size, usual)
                taken = taken or not axis
        if axes:
            free[leaf.name] = axes
    return free


def _wrong_sizes(interface: Interface, leaves: list[Any]) -> Iterator[str]:
    """Sizes of free axes that differ, lie outside their range or break a relation."""
    sizes: dict[str, int] = {}
    where: dict[str, str] = {}
    for leaf, value in zip(interface.inputs, leaves, strict=True):
        if not isinstance(leaf, TensorInput):
            leaf.fits(value, sizes)
            continue
        for axis, (name, size) in enumerate(zip(leaf.shape, value.shape, strict=True)):
            if not isinstance(name, str):
                continue
            here = f"axis {axis} of {_title(interface, leaf.name)}"
            if sizes.setdefault(name, size) != size:
                yield (
                    f"  {here} is {size}, but {where[name]} is {sizes[name]}; both are '{name}' "
                    "and were captured as one size"
                )
            where.setdefault(name, here)
    for broken in islice(interface.violations(sizes), _MOST):
        if broken in interface.sizes:
            yield (
                f"  {broken} is {sizes[broken]} ({where.get(broken, 'a number')}); "
                f"captured: {broken} {interface.sizes[broken]}. The model may compute otherwise "
                "at other sizes: compile once more with an example of that size"
            )
        else:
            given = ", ".join(f"{name}={size}" for name, size in sizes.items())
            yield (
                f"  {broken} does not hold for {given}; the model was captured where it holds: "
                "compile once more with an example of these sizes"
            )


def _captured(interface: Interface, place: int) -> str:
    """What the argument at this place was."""
    title = interface.arguments[place]
    found = [leaf for leaf in interface.inputs if _title(interface, leaf.name) == f"'{title}'"]
    return found[0].describe() if found else "a structure of inputs"


def _title(interface: Interface, name: str) -> str:
    """The model's own name for an input: ``'x'`` for ``args[0]``."""
    for place, argument in enumerate(interface.arguments):
        head = f"args[{place}]"
        if name == head or name.startswith(head + "["):
            return f"'{argument}{name[len(head) :]}'"
    return f"'{name}'"
