"""Running a captured graph node by node, with lazy values read when a node asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx._pytree import tree_flatten_spec
from torch.fx.graph import _PyTreeCodeGen

from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import device_of_values, is_lazy, lazy_value, value_of
from fxcompress.graph.state import written_tensors


class Interpreter(fx.Interpreter):
    """Runs a graph. Values are freed after their last use; a lazy one is read each time that it is
    used, but for one that the graph writes to, of which this run keeps a copy.
    """

    def __init__(self, module: CapturedModule, *, garbage_collect_values: bool = True) -> None:
        super().__init__(module, garbage_collect_values)
        self._lazy = is_lazy(module)
        self._changed = written_tensors(module) if self._lazy else frozenset()
        self._copies: dict[int, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        if not self._lazy or not isinstance(value, Tensor) or lazy_value(value) is None:
            return value
        if str(target) not in self._changed:
            return value_of(value)
        if id(value) not in self._copies:
            self._copies[id(value)] = value_of(value).clone()
        return self._copies[id(value)]

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        given = super().fetch_args_kwargs_from_env(n)
        # The graph makes its constants where its parameters are, and their values are elsewhere.
        return fx.node.map_aggregate(given, device_of_values) if self._lazy else given


def run_lazily(module: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module with lazy values gives, without gradients."""
    with torch.no_grad():
        flat = flat_inputs(module, args, kwargs)
        out = Interpreter(module).run(*flat, enable_io_processing=False)
        return module.graph.process_outputs(out)


def flat_inputs(
    module: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The values of the graph's placeholders, in order; arguments that the graph has by position
    may be given by name.
    """
    codegen = module.graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        return [*args, *kwargs.values()]
    info, named = codegen.pytree_info, dict(kwargs)
    places = info.orig_args[len(args) : info.in_spec.child(0).num_children]
    args = (*args, *(named.pop(name) for name in places if name in named))
    _check_names(info, len(args), named)
    flat: list[Any] = tree_flatten_spec((args, named), info.in_spec)
    return flat


def _check_names(info: Any, count: int, named: Mapping[str, Any]) -> None:
    """Refuse arguments that the graph does not have, and a call without some that it has."""
    places, keys = (
        info.orig_args[: info.in_spec.child(0).num_children],
        info.in_spec.child(1).context,
    )
    missing = [*places[count:], *(key for key in keys if key not in named)]
    unknown = sorted(named.keys() - set(keys))
    if missing or unknown or count > len(places):
        raise PlanError(
            f"the program takes {', '.join(info.orig_args)}, as it was captured; it was called "
            f"with {count} arguments by position and {', '.join(named) or 'none'} by name"
        )
