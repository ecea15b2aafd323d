"""How norms keep statistics while they train, found by letting each take two batches of its own.

A graph of evaluation shows neither that a norm counts its batches, nor that it weighs them by that
count (``momentum=None``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dtype_of, parameter_of, shape_of
from fxcompress.graph.modes import COUNTER, CUMULATIVE, FIXED_MODE, NORMS, RUNNING_MEAN, aten
from fxcompress.graph.parameters import find_tensor

_MOMENTUM = 6
_BATCHES, _SIZE = 2, 4


@dataclass(frozen=True)
class _Habit:
    """Whether a norm counts its batches, and whether the count is the weight of the latest."""

    counts: bool
    cumulative: bool


def note_norms(module: CapturedModule, model: nn.Module | None) -> Iterator[str]:
    """Mark each norm of a graph with what it does beside its operator when it trains.

    Args:
        module: In evaluation mode; the nodes' ``meta`` is written.
        model: What it was captured from. Without it a norm is taken for one of torch's own.

    Yields:
        What to tell about norms that train in another way than any of these, or could not be tried.
    """
    for node in module.graph.nodes:
        if node.target not in NORMS or node.meta.get(FIXED_MODE):
            continue
        name = parameter_of(node.args[RUNNING_MEAN])
        if name is None:
            continue
        path, _, leaf = name.rpartition(".")
        counter = f"{path}.num_batches_tracked".lstrip(".")
        count = find_tensor(module, counter)
        if leaf != "running_mean" or count is None or count.is_floating_point() or count.ndim:
            continue
        norm = None if model is None else model.get_submodule(path)
        try:
            if norm is None or count.is_meta:
                habit: _Habit | None = _conventional(node, norm)
            else:
                habit = _observed(node, norm)
        except Exception as error:  # a norm is anybody's code
            yield (
                f"{path or 'the model'}: this norm could not be tried alone "
                f"({type(error).__name__}: {error}); in training the program keeps its running "
                "statistics as torch's own norms do"
            )
            habit = _conventional(node, norm)
        if habit is None:
            yield (
                f"{path or 'the model'}: this norm keeps its running statistics in a way of its "
                f"own while it trains; the program keeps them with the momentum {_momentum(node)}"
            )
        elif habit.counts:
            node.meta[COUNTER] = counter
            node.meta[CUMULATIVE] = habit.cumulative


def _conventional(node: fx.Node, norm: nn.Module | None) -> _Habit:
    """What one of torch's own norms does."""
    none = _momentum(node) == 0 if norm is None else vars(norm).get("momentum", 0) is None
    counts = node.target is not aten.instance_norm.default
    return _Habit(counts, counts and none)


def _momentum(node: fx.Node) -> float:
    value = node.args[_MOMENTUM]
    assert isinstance(value, int | float)
    return value


def _observed(node: fx.Node, norm: nn.Module) -> _Habit | None:
    """What the norm does with two batches, None if that is nothing known."""
    twin = copy.deepcopy(norm)
    for part in twin.modules():
        part.training = True
    state = dict(twin.named_buffers())
    mean, count = state["running_mean"], state["num_batches_tracked"]
    before, start = mean.clone(), int(count)
    batches = list(_batches(node, mean.device))
    with torch.no_grad():
        for batch in batches:
            type(twin).forward(twin, batch)  # hooks are the user's, and act on more than the twin
    counted = int(twin.get_buffer("num_batches_tracked")) - start
    after = twin.get_buffer("running_mean")
    for cumulative in (False, True):
        rates = [1 / (start + i) if cumulative else _momentum(node) for i in (1, _BATCHES)]
        if _close(after, _predicted(before, batches, rates)) and counted in (0, _BATCHES):
            if cumulative and not counted:
                return None
            return _Habit(bool(counted), cumulative)
    return None


def _batches(node: fx.Node, device: torch.device) -> Iterator[Tensor]:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = shape_of(source)
    sizes = (_SIZE, shape[1], *(2 for _ in shape[2:]))
    generator = torch.Generator().manual_seed(0)
    for number in range(_BATCHES):
        drawn = torch.randn(sizes, generator=generator) * (1 + number) + 3 * number
        yield drawn.to(device, dtype_of(source))


def _predicted(mean: Tensor, batches: list[Tensor], rates: list[float]) -> Tensor:
    for batch, rate in zip(batches, rates, strict=True):
        found = batch.mean([dim for dim in range(batch.ndim) if dim != 1])
        mean = (1 - rate) * mean + rate * found
    return mean


def _close(found: Tensor, expected: Tensor) -> bool:
    # Half precision keeps three digits of a mean.
    rtol = 1e-2 if torch.finfo(found.dtype).bits < 32 else 1e-4
    return bool(torch.allclose(found, expected.to(found.dtype), rtol=rtol, atol=rtol))
