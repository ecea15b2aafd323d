"""BatchNorm's running statistics, anew from data: what a compressed net needs first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.arguments import Count, checked
from fxcompress.errors import FxCompressError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.norms import batch_norms
from fxcompress.graph.parameters import find_tensor, names_of, replace_tensor, tensor_called
from fxcompress.graph.schema import arguments, set_argument
from fxcompress.graph.state import forked, written_tensors
from fxcompress.task import Task
from fxcompress.train.batches import batches_of, call, size_of
from fxcompress.train.reading import EMPTY


@checked(FxCompressError)
def recalibrate(module: nn.Module, task: Task, batches: Count | None = None) -> int:
    """Renew the running statistics of BatchNorm: the plain mean over the data, in place.

    Weights stay, and so does everything else that differs between training and evaluation.

    Args:
        module: A program's module, or any other.
        task: Whose data are run; labels are not looked at.
        batches: How many of them; None for all.

    Returns:
        How many running statistics were renewed.

    Raises:
        FxCompressError: There are no data, or the module does not take them.
    """
    with torch.no_grad(), _latest_statistics(module) as buffers:
        sums = [torch.zeros_like(buffer) for buffer in buffers]
        weight = 0
        for number, (inputs, _) in enumerate(batches_of(module, task) if buffers else ()):
            if batches is not None and number >= batches:
                break
            call(module, task, inputs)
            size = size_of(inputs)
            weight += size
            for total, buffer in zip(sums, buffers, strict=True):
                total.add_(buffer, alpha=size)
        if buffers and not weight:
            raise FxCompressError(EMPTY)
        if weight:
            for total, buffer in zip(sums, buffers, strict=True):
                buffer.copy_(total / weight)
    return len(buffers)


def renewed(module: CapturedModule, task: Task, batches: int | None = None) -> dict[str, Tensor]:
    """What `recalibrate` would write, by name; the module stays as it is.

    Each tensor stands under one name, also where several have it.

    Raises:
        FxCompressError: There are no data, or the module does not take them.
    """
    statistics = tuple(_statistics(module))
    own = _with_own(module, statistics)
    with forked(own):
        recalibrate(own, task, batches)
    found = {name: find_tensor(own, name) for name in statistics}
    return {name: value for name, value in found.items() if value is not None}


def _statistics(module: CapturedModule) -> Iterator[str]:
    """The running statistics that the graph reads, each tensor under one name."""
    names, seen = names_of(module), set[str]()
    for norm in batch_norms(module):
        for name in (norm.mean, norm.variance):
            if name is not None and name not in seen:
                seen |= names[name]
                yield name


def _with_own(module: CapturedModule, statistics: tuple[str, ...]) -> CapturedModule:
    """The module in evaluation mode, over the same tensors but for copies of the statistics and of
    whatever else its graph writes to.
    """
    own = clone_graph(module).eval()
    names = names_of(own)
    for name in {*statistics, *written_tensors(own)}:
        value = tensor_called(module, name)
        replace_tensor(own, names, name, value.clone())
    return own


@contextmanager
def _latest_statistics(module: nn.Module) -> Iterator[list[Tensor]]:
    """Every BatchNorm normalises by its batch and keeps that batch's statistics, for a while.

    Gives the buffers that hold them.
    """
    change = _captured(module) if isinstance(module, CapturedModule) else _layers(module)
    with change as buffers:
        yield list({id(buffer): buffer for buffer in buffers}.values())


@contextmanager
def _captured(module: CapturedModule) -> Iterator[list[Tensor]]:
    norms = [
        norm for norm in batch_norms(module) if arguments(norm.node)["running_mean"] is not None
    ]
    before = [(norm.node.args, norm.node.kwargs) for norm in norms]
    for norm in norms:
        set_argument(norm.node, "training", True)
        set_argument(norm.node, "momentum", 1.0)
    names = [name for norm in norms for name in (norm.mean, norm.variance) if name]
    module.recompile()
    try:
        found = (find_tensor(module, name) for name in names)
        yield [buffer for buffer in found if buffer is not None]
    finally:
        for norm, (args, kwargs) in zip(norms, before, strict=True):
            norm.node.args, norm.node.kwargs = args, kwargs
        module.recompile()


@contextmanager
def _layers(module: nn.Module) -> Iterator[list[Tensor]]:
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    before = [(layer.training, layer.momentum) for layer in layers]
    buffers = []
    for layer in layers:
        layer.training, layer.momentum = True, 1.0
        buffers += [layer.running_mean, layer.running_var]
    try:
        yield [buffer for buffer in buffers if buffer is not None]
    finally:
        for layer, (training, momentum) in zip(layers, before, strict=True):
            layer.training, layer.momentum = training, momentum
