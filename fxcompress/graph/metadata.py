"""Shapes, dtypes and names of a graph's nodes, whatever kind of value ``meta["val"]`` holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxcompress.errors import FxCompressError


@dataclass(frozen=True)
class TensorMeta:
    """Shape and dtype of a node's tensor, without the machinery of a fake tensor.

    Attributes:
        shape: Sizes at the example inputs.
        dtype: Element type.
        dynamic: The axes whose size follows the inputs.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: frozenset[int] = frozenset()


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Sizes of the node's tensor at the example inputs, also where an axis is dynamic."""
    return example_shape(_value_of(node))


def example_shape(value: Tensor | TensorMeta) -> tuple[int, ...]:
    """Sizes of a fake tensor at the example inputs."""
    return tuple(example_size(size) for size in value.shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """Element type of the node's tensor."""
    return _value_of(node).dtype


def dynamic_dims(node: fx.Node) -> frozenset[int]:
    """The axes of the node's tensor whose size follows the inputs."""
    value = _value_of(node)
    if isinstance(value, TensorMeta):
        return value.dynamic
    return frozenset(dim for dim, size in enumerate(value.shape) if is_free(size))


def is_free(size: int | torch.SymInt) -> bool:
    """Whether a size follows the inputs; a symbol that the model pinned to one value does not."""
    return not isinstance(size, int) and size.node.maybe_as_int() is None


def is_tensor(node: fx.Node) -> bool:
    """Whether the node yields one tensor (and not a tuple, a number or nothing)."""
    return isinstance(node.meta.get("val"), Tensor | TensorMeta)


def is_size(node: fx.Node) -> bool:
    """Whether the node yields a whole number, such as the size of an axis."""
    value = node.meta.get("val")
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def parameter_of(node: object) -> str | None:
    """The name of the parameter or buffer that a node reads; None for other nodes."""
    if isinstance(node, fx.Node) and node.op == "get_attr" and is_tensor(node):
        return str(node.target)
    return None


def _value_of(node: fx.Node) -> Tensor | TensorMeta:
    value = node.meta.get("val")
    if not isinstance(value, Tensor | TensorMeta):
        raise FxCompressError(
            f"node '{node.name}' ({node.op} of {node.target}) yields {type(value).__name__}, "
            "not one tensor; ask for shapes only where `is_tensor` holds"
        )
    return value


UNSEEN = 97
"""Stands for a size that only the values of the inputs tell (of ``x[x > 0]``)."""


def example_size(size: int | torch.SymInt) -> int:
    """A size at the example inputs."""
    # int(size) would record a guard; the hint is the size at the example inputs.
    if isinstance(size, int):
        return size
    node = size.node
    known = node.maybe_as_int()
    known = node.hint if known is None else known
    if known is None:
        env = node.shape_env
        seen = getattr(env, "backed_var_to_val", None) or env.var_to_val
        known = node.expr.xreplace({s: seen.get(s, UNSEEN) for s in node.expr.free_symbols})
    return int(known)
