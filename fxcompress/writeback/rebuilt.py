"""What comes of a model when its library builds it anew from its configuration and state dict.

A class may take from a width in the configuration what the graph keeps as it was: the scale of
attention, that of the logits, a rotary table. A model that is saved and loaded would then compute
something else, and nobody would be told.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from fxcompress.canonicalize import canonicalize
from fxcompress.capture import DynamicSpec, capture
from fxcompress.errors import CaptureError
from fxcompress.writeback.attention import rescale_queries
from fxcompress.writeback.gate import Gate, beside

Model = TypeVar("Model", bound=nn.Module)


def rebuilt(result: Model) -> Model | None:
    """A copy of `result` in which what has a configuration is made of it, with the same weights.

    None where a class is not made of its configuration alone, or does not take the state dict: then
    loading fails, and says so.
    """
    twin = copy.deepcopy(result)
    for path in _described(result):
        module = result.get_submodule(path)
        make: Any = type(module)
        try:
            with torch.random.fork_rng(devices=[]):
                fresh: Model = make(copy.deepcopy(vars(module)["config"]))
            fresh.load_state_dict(module.state_dict())
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return None
        _to_kind_of(fresh, module)
        if not path:
            return fresh
        twin.set_submodule(path, fresh)
    return twin


def made_to_load(result: Model, twin: Model, gate: Gate, dynamic: DynamicSpec) -> Model | None:
    """A model that computes the same after loading, with the scales that differ in its weights.

    Args:
        result: Passes the gate, but built anew does not.
        twin: What `rebuilt` made of it; changed.
        gate: Measures both.
        dynamic: What to ask of torch.export.
    """
    given = beside(gate.inputs[0], twin)
    try:
        # Of one class: unlike the graph that passes made, both have the same nodes.
        found, wanted = (
            canonicalize(capture(model, *given, dynamic).module) for model in (twin, result)
        )
    except CaptureError:
        return None
    if not rescale_queries(twin, found, wanted, *given) or not gate.measure(twin).ok:
        return None
    adopted = copy.deepcopy(result)
    adopted.load_state_dict(twin.state_dict())
    for path, module in adopted.named_modules():
        for name, value in _numbers(twin.get_submodule(path)):
            if vars(module).get(name) != value:
                setattr(module, name, value)
    return adopted if gate.measure(adopted).ok else None


def _described(model: nn.Module) -> Iterator[str]:
    """The outermost modules that have a configuration."""
    outer: list[str] = []
    for path, module in model.named_modules():
        if hasattr(vars(module).get("config"), "to_dict") and not any(
            not above or path.startswith(f"{above}.") for above in outer
        ):
            outer.append(path)
            yield path


def _to_kind_of(fresh: nn.Module, module: nn.Module) -> None:
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is not None:
        fresh.to(like.device, like.dtype)
    fresh.train(module.training)


def _numbers(module: nn.Module) -> Iterator[tuple[str, float]]:
    for name, value in vars(module).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
