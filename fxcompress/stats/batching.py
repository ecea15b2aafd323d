"""Whether the first axis of a program's inputs numbers samples, found by running it.

The nodes of a graph, the channels of a single image and the steps of a sequence stand on the first
axis too, and no shape tells them from samples. What tells is that the outputs of samples do not
depend on other samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.graph.precision import tolerance_of
from fxcompress.graph.state import copies, forked
from fxcompress.program import Program
from fxcompress.stats.running import runner, tensors_of
from fxcompress.train.batches import call, size_of
from fxcompress.verify import distance

FEW = 4
"""Samples that are run to see something of the program, where it runs so few."""


@dataclass(frozen=True)
class Batching:
    """What the first axis of a batch is.

    Attributes:
        independent: Whether its indices are samples: no output of one depends on another. If not,
            a batch is one sample.
        cuttable: Whether the program also runs a part of a batch.
    """

    independent: bool
    cuttable: bool


_KNOWN: WeakKeyDictionary[Program, Batching] = WeakKeyDictionary()


def batching_of(program: Program, inputs: Any) -> Batching:
    """What the first axis of the batches of the program's task is; told by one batch for all.

    Args:
        program: With a task.
        inputs: Of a batch. A batch of one tells nothing and is not remembered.
    """
    if program in _KNOWN:
        return _KNOWN[program]
    if size_of(inputs) == 1:
        return Batching(independent=True, cuttable=False)
    free = _free(program)
    independent = _independent(program, cut(program, inputs, 0, FEW) if free else inputs)
    return _KNOWN.setdefault(program, Batching(independent, independent and free))


def cut(program: Program, inputs: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop` of a batch's inputs."""
    return _mapped(program, inputs, lambda value: value[start:stop])


def _mapped(program: Program, inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Inputs with every tensor changed that holds the samples on its first axis.

    Inputs that are given in the program's own order are told apart by its free axes, others by the
    size of the axis.
    """
    leaves, tree = pytree.tree_flatten(inputs)
    size, places = size_of(inputs), [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    held = [leaves[place].ndim > 0 and leaves[place].shape[0] == size for place in places]
    assert program.task is not None
    own = program.task.forward is None and not isinstance(inputs, Mapping)
    if own and len(places) == len(program.dynamic) and 0 in program.dynamic[0]:
        name = program.dynamic[0][0]
        held = [axes.get(0) == name for axes in program.dynamic]
    for place in (place for place, there in zip(places, held, strict=True) if there):
        leaves[place] = change(leaves[place])
    return pytree.tree_unflatten(leaves, tree)


def _free(program: Program) -> bool:
    """Whether the size of the first axis, and of nothing else, is free in every input.

    An input without that axis may hold indices along it, if it holds integers.
    """
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    name = program.dynamic[0].get(0) if program.dynamic else None
    pairs = zip(tensors, program.dynamic, strict=True)
    return name is not None and all(_fits(tensor, axes, name) for tensor, axes in pairs)


def _fits(tensor: Tensor, axes: Mapping[int, str], name: str) -> bool:
    held = [axis for axis, own in axes.items() if own == name]
    if not held:
        return tensor.is_floating_point() or tensor.dtype == torch.bool
    return held == [0]


def _independent(program: Program, inputs: Any) -> bool:
    """Whether each half of the outputs is the same with copies of that half in place of the other.

    A dependence only within a half is not seen; where every two samples are connected, if over
    others, there is one between the halves.
    """
    assert program.task is not None
    module, size = runner(program.module), size_of(inputs)
    half = size // 2
    ahead = torch.arange(size)
    for kept, index in (
        (slice(None, half), torch.where(ahead < half, ahead, ahead % half)),
        (slice(half, None), torch.where(ahead < half, half + ahead % (size - half), ahead)),
    ):
        outs: list[list[Tensor]] = []
        changed = _mapped(program, inputs, partial(_at, index=index))
        for given in (inputs, changed):
            with torch.no_grad(), forked(module):
                values = tensors_of(call(module, program.task, copies(given)))
            outs.append([v[kept] for v in values if v.ndim and v.shape[0] == size])
        if not outs[0] or len(outs[0]) != len(outs[1]):
            return False
        if not distance(outs[1], outs[0])[0] <= tolerance_of(outs[0][0].dtype):
            return False
    return True


def _at(value: Tensor, index: Tensor) -> Tensor:
    return value[index.to(value.device)]
