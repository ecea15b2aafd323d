"""Where the entries of a tensor that a node holds lie in the parameter it is read from.

A parameter may be transposed, viewed, cut and cast before an operator reads it. All of these but
the cast are views of its memory, so sizes, strides and an offset say which entries they hand on.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.metadata import example_size, is_size, parameter_of, shape_of
from fxcompress.graph.moves import is_copy, is_view


@dataclass(frozen=True)
class Layout:
    """Entries of a contiguous tensor, by index of some axes.

    Attributes:
        sizes: Of the axes.
        strides: How far apart neighbours on each axis are in the flat tensor.
        offset: Where the first entry is.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def read(self, value: Tensor) -> Tensor:
        """The entries of a tensor, as a view where it is contiguous."""
        flat = value.contiguous()
        return flat.as_strided(self.sizes, self.strides, flat.storage_offset() + self.offset)

    def written(self, entries: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape with these entries, and zeros elsewhere."""
        out = entries.new_zeros(shape)
        self.read(out).copy_(entries.reshape(self.sizes))
        return out


@dataclass(frozen=True)
class Source:
    """The parameter behind what a node holds.

    Attributes:
        parameter: Its name.
        shape: Its shape.
        layout: Where the entries of the node's tensor lie in it.
        computed: Name of the node that computes the tensor from the parameter, of its shape, and
            does more than hand on its entries; None where nothing does.
    """

    parameter: str
    shape: tuple[int, ...]
    layout: Layout
    computed: str | None = None


def sources_of(node: fx.Node) -> Iterator[Source]:
    """The parameters that a node's tensor is read from: one, or those of its shape that it is
    computed from.
    """
    tensor = _view(node)
    if tensor is not None:
        read, seen = tensor
        layout = Layout(tuple(seen.shape), seen.stride(), int(seen.storage_offset()))
        yield Source(str(read.target), shape_of(read), layout)
        return
    shape = shape_of(node)
    layout = Layout(shape, torch.empty(shape, device="meta").stride())
    for parameter in _ancestors(node):
        if shape_of(parameter) == shape:
            yield Source(str(parameter.target), shape, layout, _computing(node).name)


def _view(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """The read of a parameter that `node` is a view of, and that view of an empty tensor."""
    if parameter_of(node) is not None:
        return node, torch.empty(shape_of(node), device="meta")
    found = _view(_operand(node)) if hands_on(node) else None
    if found is None or is_copy(node):
        return found
    read, before = found
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: example_size(n.meta["val"]) if is_size(n) else before
    )
    after = node.target(*args, **kwargs)  # type: ignore[operator]
    return (read, after) if _shares(after, before) else None


def hands_on(node: fx.Node) -> bool:
    """Whether a node only hands on entries of its one operand, as far as its operator says."""
    operands = [operand for operand in node.all_input_nodes if not is_size(operand)]
    if len(operands) != 1 or node.op != "call_function":
        return False
    return is_copy(node) or is_view(node) or node.target is operator.getitem


def _operand(node: fx.Node) -> fx.Node:
    return next(operand for operand in node.all_input_nodes if not is_size(operand))


def _shares(after: Any, before: Any) -> bool:
    """Whether the memory is the same; a reshape may have to copy."""
    first, second = (one[0] if isinstance(one, (tuple, list)) else one for one in (after, before))
    return bool(first.untyped_storage()._cdata == second.untyped_storage()._cdata)


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """The reads of parameters behind a node, in the graph's order."""
    found: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        one = pending.pop()
        if one not in found:
            found[one] = None
            pending += one.all_input_nodes
    return sorted(one for one in found if parameter_of(one) is not None)


def _computing(node: fx.Node) -> fx.Node:
    """The last node before `node` that does more than hand on entries."""
    while hands_on(node):
        node = _operand(node)
    return node
