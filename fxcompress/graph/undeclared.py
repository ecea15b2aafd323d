"""What composite operators do and their schemas do not say: return an operand itself, or write to
one.

A kernel keeps to its schema. A composite operator is made of others and need not: ``dropout`` gives
its input back in evaluation, ``type_as`` where the types agree; ``batch_norm`` writes running
statistics in training. So such a call is run by itself, and one looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import device_of_values, value_of
from fxcompress.graph.metadata import dtype_of, example_size, is_size, is_tensor, shape_of
from fxcompress.graph.parameters import tensor_of

Key = tuple[Any, ...]


def handed_on(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that may share memory with what a composite operator yields."""
    if not _is_silent(node):
        return
    shared = _shared(*_call(node))
    for number, operand in enumerate(node.all_input_nodes):
        if number in shared if shared is not None else not is_size(operand):
            yield operand


@cache
def _is_composite(op: OpOverload) -> bool:
    return bool(
        op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        and all(one.alias_info is None for one in (*op._schema.arguments, *op._schema.returns))
    )


def _is_silent(node: fx.Node) -> bool:
    """Whether a node calls an operator that is made of others and declares nothing shared."""
    return isinstance(node.target, OpOverload) and _is_composite(node.target)


def _call(node: fx.Node) -> tuple[OpOverload, str, Callable[[Any], tuple[Any, Any]], Key]:
    """The operator, its arguments as text and as a function of operands, the operands' kinds."""
    numbers = {operand: number for number, operand in enumerate(node.all_input_nodes)}
    text = repr(fx.node.map_arg((node.args, node.kwargs), lambda n: f"operand {numbers[n]}"))

    def filled(values: Any) -> tuple[Any, Any]:
        found: tuple[Any, Any] = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: values[numbers[n]]
        )
        return found

    return node.target, text, filled, tuple(map(_kind, numbers))  # type: ignore[return-value]


def _kind(node: fx.Node) -> tuple[tuple[int, ...], torch.dtype | None] | None:
    """Shape and dtype of a tensor; the number itself of a size; None for anything else."""
    if is_tensor(node):
        return shape_of(node), dtype_of(node)
    return ((example_size(node.meta["val"]),), None) if is_size(node) else None


_SHARED: dict[Key, frozenset[int] | None] = {}


def _shared(
    op: OpOverload, text: str, filled: Callable[[Any], tuple[Any, Any]], kinds: Key
) -> frozenset[int] | None:
    """The numbers of the operands that the results share memory with; None where it cannot be run
    without the values.
    """
    key = (op, text, kinds)
    if key not in _SHARED:
        _SHARED[key] = _look(op, filled, kinds)
    return _SHARED[key]


def _look(
    op: OpOverload, filled: Callable[[Any], tuple[Any, Any]], kinds: Key
) -> frozenset[int] | None:
    if any(kind is None for kind in kinds):
        return None  # several tensors
    values = [
        shape[0] if dtype is None else torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in kinds
    ]
    args, kwargs = filled(values)
    try:
        with torch.no_grad():
            results = pytree.tree_leaves(op(*args, **kwargs))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    tensors = [result for result in results if isinstance(result, Tensor)]
    return frozenset(
        number
        for number, value in enumerate(values)
        if isinstance(value, Tensor)
        and any(
            torch._C._is_alias_of(value, result)  # type: ignore[attr-defined]
            for result in tensors
        )
    )


_WRITES: dict[Key, frozenset[int]] = {}


def written_unseen(module: CapturedModule, node: fx.Node, watched: set[fx.Node]) -> set[fx.Node]:
    """The operands among `watched` that a composite operator writes to.

    Args:
        module: Whose tensors the watched nodes read.
        node: A call.
        watched: Nodes that read buffers.
    """
    own = [n for n in node.all_input_nodes if n in watched]
    if not own or not _is_silent(node):
        return set()
    op, text, filled, kinds = _call(node)
    places = tuple(number for number, n in enumerate(node.all_input_nodes) if n in watched)
    # Whether it writes depends on no size; the operands' sizes only have to go together.
    key = (op, text, places, tuple(kind and (len(kind[0]), kind[1]) for kind in kinds))
    if key not in _WRITES:
        _WRITES[key] = _watch(module, node, filled, places)
    return {n for number, n in enumerate(node.all_input_nodes) if number in _WRITES[key]}


def _watch(
    module: CapturedModule,
    node: fx.Node,
    filled: Callable[[Any], tuple[Any, Any]],
    places: tuple[int, ...],
) -> frozenset[int]:
    """Run the call on copies and compare; what cannot be run may write to all of them."""
    operands = node.all_input_nodes
    if not all(is_tensor(operand) for operand in operands):
        return frozenset(places)
    known = {n: value_of(tensor_of(module, n)) for n in operands if n.op == "get_attr"}
    device = device_of_values(known[operands[places[0]]].device)
    values = [
        known[n].clone() if n in known and not known[n].is_meta else _made_up(n).to(device)
        for n in operands
    ]
    before = [value.clone() for value in values]
    args, kwargs = filled([value.detach() for value in values])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        return frozenset(places)
    return frozenset(p for p in places if not _same_bits(values[p], before[p]))


def _made_up(node: fx.Node) -> Tensor:
    """Values of a kind that any operator takes: small and positive, or indices of zero."""
    size, dtype = shape_of(node), dtype_of(node)
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.zeros(size, dtype=dtype)
    values = torch.arange(1, 1 + torch.Size(size).numel(), dtype=torch.float64)
    return (0.25 + (values / 7).frac()).reshape(size).to(dtype)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.nan_to_num(), second.nan_to_num())
