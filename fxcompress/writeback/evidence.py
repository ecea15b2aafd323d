"""Which sizes changed where: the dense graph beside the smaller one, seen from every module.

Two sources speak. The axes of a parameter are expressions over factors, so ``(3 heads dims)``
before and after says what became of the heads. And the integers that nodes are called with, a
view's sizes or a pad's amounts, were mended one by one. Each finding has a *key* that is relative
to the module, so that findings in several modules of one class can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import prod
from operator import le
from typing import Any

from torch import fx
from torch._ops import OpOverload

from fxcompress.analysis.couple import couple
from fxcompress.axes.expressions import Concat, Expr, Product
from fxcompress.graph.captured import CapturedModule

Key = tuple[Any, ...]
_MOST_PARTS = 6
_POSITIONS = {"axis", "dim", "dim0", "dim1", "dims", "end_dim", "index", "start_dim"}
"""Arguments that number an axis, which is no size."""


@dataclass(frozen=True)
class Finding:
    """Something that had size `old` and has size `new`; `rank` is how far below the module it lies.

    Attributes:
        old: The size in the dense graph.
        new: The size in the smaller graph.
        rank: 0 for the module's own operations, parameters and direct children.
        node: The node whose argument this is; empty for an axis of a parameter.
    """

    old: int
    new: int
    rank: int
    node: str = ""


Evidence = Mapping[str, Mapping[Key, Finding]]
"""For each module path, the findings by key."""


def gather(dense: CapturedModule, small: CapturedModule) -> Evidence:
    """Compare a canonical dense graph with the graph that passes made of it."""
    found: dict[str, dict[Key, Finding]] = {}
    for name, dim, run, old, new in _axis_findings(dense, small):
        owner, _, leaf = name.rpartition(".")
        for path, below in _ancestors(owner):
            key = ("axis", *below, leaf, dim, run)
            rank = max(0, len(below) - 1)
            found.setdefault(path, {})[key] = Finding(old, new, rank)
    for node, place, old, new, ordinal in _argument_findings(dense, small):
        for path, below in _ancestors(module_path(node)):
            key = ("node", *below, str(node.target), ordinal, *place)
            found.setdefault(path, {})[key] = Finding(old, new, len(below), node.name)
    return found


def module_path(node: fx.Node) -> str:
    """The path of the innermost module whose forward made the node."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def integers(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The integers among arguments, with the path to each."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield place, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from integers(item, (*place, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from integers(item, (*place, key))


def _argument_name(node: fx.Node, place: tuple[Any, ...]) -> str:
    """What the operator calls the argument at `place`."""
    kind, which, *_ = place
    if kind == 1:
        return str(which)
    if not isinstance(node.target, OpOverload):
        return "index"  # operator.getitem and arithmetic on sizes
    return str(node.target._schema.arguments[which].name)


def _ancestors(path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every module above `path`, itself included, with the names that lead from it to `path`."""
    parts = tuple(path.split(".")) if path else ()
    for cut in range(len(parts) + 1):
        yield ".".join(parts[:cut]), parts[cut:]


def _axis_findings(
    dense: CapturedModule, small: CapturedModule
) -> Iterator[tuple[str, int, Key, int, int]]:
    before, after = couple(dense).parameters, couple(small).parameters
    for name in before.keys() & after.keys():
        for dim, pair in enumerate(zip(before[name], after[name], strict=False)):
            for run, old, new in _runs(*pair):
                yield name, dim, run, old, new


def _runs(old: Expr, new: Expr) -> Iterator[tuple[Key, int, int]]:
    """Every stretch of an axis that has a size: the whole, neighbouring factors, parts."""
    yield (), old.size, new.size
    if isinstance(old, Concat):
        parts = new.parts if isinstance(new, Concat) else ()
        if len(parts) == len(old.parts):
            for index, pair in enumerate(zip(old.parts, parts, strict=True)):
                for run, before, after in _runs(*pair):
                    yield ("part", index, *run), before, after
            for end in range(2, len(parts)):
                yield ("upto", end), _total(old.parts[:end]), _total(parts[:end])
    elif isinstance(old, Product):
        yield from _product_runs(old, new)


def _total(parts: Iterable[Expr]) -> int:
    return sum(part.size for part in parts)


def _product_runs(old: Product, new: Expr) -> Iterator[tuple[Key, int, int]]:
    if len(old.parts) > _MOST_PARTS:
        return
    before = [part.size for part in old.parts]
    after = [part.size for part in (new.parts if isinstance(new, Product) else (new,))]
    readings = list(_alignments(before, after))
    for kept, sizes in readings:
        # Where it is clear which factors are left, modules that lost one and modules that did not
        # are told by one rule.
        reading = kept if len(readings) > 1 else ()
        for start in range(len(before)):
            for end in range(start + 1, len(before) + 1):
                key = ("run", reading, start, end)
                yield key, prod(before[start:end]), prod(sizes[start:end])


def _alignments(before: list[int], after: list[int]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """What the factors of an axis may have become.

    One of which a single unit is left is gone from the expression. None has grown.
    """
    for kept in combinations(range(len(before)), min(len(after), len(before))):
        sizes = [1] * len(before)
        for index, size in zip(kept, after, strict=False):
            sizes[index] = size
        if len(after) <= len(before) and all(map(le, sizes, before)):
            yield kept, sizes


def _argument_findings(
    dense: CapturedModule, small: CapturedModule
) -> Iterator[tuple[fx.Node, tuple[Any, ...], int, int, int]]:
    twins = {node.name: node for node in small.graph.nodes}
    seen: Counter[tuple[str, str]] = Counter()
    for node in dense.graph.nodes:
        if node.op != "call_function":
            continue
        kind = (module_path(node), str(node.target))
        ordinal = seen[kind]
        seen[kind] += 1
        twin = twins.get(node.name)
        if twin is None or twin.target != node.target:
            continue
        after = dict(integers((twin.args, twin.kwargs)))
        for place, old in integers((node.args, node.kwargs)):
            if place in after and _argument_name(node, place) not in _POSITIONS:
                yield node, place, old, after[place], ordinal
