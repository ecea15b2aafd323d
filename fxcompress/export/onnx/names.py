"""Names for the tensors that go into a model and come out of it, made from how they are nested."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import ExportError


def input_names(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """One name for each flattened leaf: the argument's, then the keys that lead to the leaf."""
    parameters = inspect.signature(module.forward).parameters.values()
    by_place = [p.name for p in parameters if p.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
    rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), "input")

    def name(keys: tuple[Any, ...]) -> str:
        half, argument, *inner = keys
        if half == 1:
            return _joined(argument, *inner)
        if argument < len(by_place):
            return _joined(by_place[argument], *inner)
        return _joined(rest, argument - len(by_place), *inner)

    return [name(keys) for keys, _ in _leaves_with_keys((args, kwargs))]


def named_outputs(result: Any, taken: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a model's result: ``output``, ``output_1``, or by key, ``logits``.

    Numbers, flags and ``None`` among the results are constants of the model and get no name.

    Raises:
        ExportError: There is no tensor among the results.
    """
    named = [
        (_joined(*keys) if keys and isinstance(keys[0], str) else _joined("output", *keys), leaf)
        for keys, leaf in _leaves_with_keys(result)
        if isinstance(leaf, Tensor)
    ]
    if not named:
        raise ExportError(
            f"the module returns no tensor but a {type(result).__name__}; "
            "return tensors, or a type registered with torch.utils._pytree"
        )
    names = unique_names([name for name, _ in named], taken)
    return dict(zip(names, (leaf for _, leaf in named), strict=True))


def unique_names(names: Sequence[str], taken: Collection[str] = ()) -> tuple[str, ...]:
    """The names as they are, with ``_2``, ``_3`` … after those already in use.

    Example:
        >>> unique_names(["x", "x", "y"], taken=["y"])
        ('x', 'x_2', 'y_2')
    """
    used: set[str] = set(taken)
    result: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        result.append(next(candidate for candidate in candidates if candidate not in used))
        used.add(result[-1])
    return tuple(result)


def _leaves_with_keys(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Each leaf with the indices, keys and attributes that lead to it, in torch's order."""
    try:
        found, _ = pytree.tree_flatten_with_path(tree)
    except ValueError:
        # A node type registered without keys, such as some caches: number the leaves instead.
        return [((position,), leaf) for position, leaf in enumerate(pytree.tree_leaves(tree))]
    return [(tuple(_plain(key) for key in path), leaf) for path, leaf in found]


def _plain(key: Any) -> Any:
    """The index, key or attribute name inside one of torch's key objects."""
    match key:
        case pytree.SequenceKey():
            return key.idx
        case pytree.MappingKey():
            return key.key
        case pytree.GetAttrKey():
            return key.name
    return str(key)


def _joined(*parts: Any) -> str:
    return re.sub(r"\W", "_", "_".join(str(part) for part in parts))
