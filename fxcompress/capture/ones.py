"""Whether a free axis may have size one, which torch.export leaves open.

What an export says of a free size holds from two on: it takes one for a constant, so a branch on
``x.shape[0] > 1`` and a ``squeeze`` leave no guard. Here model and graph run at size one and are
compared; where they differ, or cannot be compared, the range of the axis begins at two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.ambient import EXCLUSIVE
from fxcompress.capture.inputs import BATCH, UNDECIDED, Inputs
from fxcompress.capture.tracing import evaluating, whole_attention
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.precision import TOLERANCE
from fxcompress.graph.state import copies, isolated, written_tensors
from fxcompress.interface import Interface, SizeInput, SizeRange, Sizes, TensorInput
from fxcompress.interface.draws import drawn_like, resized

_MOST_TOGETHER = 3
"""Up to so many axes every combination of ones is tried; of more, each alone and all at once."""


def admit_ones(model: nn.Module, module: CapturedModule, inputs: Inputs) -> Interface:
    """The interface of `module`, with one in the range of each axis where it agrees with `model`.

    Both run on copies of whatever they write to, from the same random state.

    Args:
        model: What was captured.
        module: The graph of it.
        inputs: Those of the capture.
    """
    interface = _decided(model, module, inputs)
    if not any(one.note for one in interface.sizes.values()):
        return interface
    twin = clone_graph(module)
    twin.interface = _one_batch(module, inputs)
    # An axis that torch does not relate to the batch, a mask's, may be one only together with it.
    joined = interface if twin.interface is None else _decided(model, twin, inputs)
    return interface if any(one.note for one in joined.sizes.values()) else joined


def _one_batch(module: CapturedModule, inputs: Inputs) -> Interface | None:
    """The interface with all first axes of the size of the batch as one; None if there is one."""
    interface = module.interface
    assert interface is not None
    sizes = interface.sizes_of(interface.flatten(*inputs))
    others = {axes[0] for axes in interface.free_axes() if 0 in axes} & set(interface.independent)
    same = {name for name in others - {BATCH} if sizes.get(BATCH) == sizes[name]}
    follows = dict.fromkeys(same, SizeRange(0, None, equals=BATCH))
    return replace(interface, sizes={**interface.sizes, **follows}) if same else None


def _decided(model: nn.Module, module: CapturedModule, inputs: Inputs) -> Interface:
    interface = module.interface
    assert interface is not None
    undecided = {
        name: interface.sizes[name]
        for axes in interface.free_axes()
        for name in axes.values()
        if not interface.sizes[name].equals and interface.sizes[name].low == UNDECIDED
    }
    if not undecided:
        return interface
    pair = _Pair(model, module, inputs)
    notes: dict[str, str] = {}
    for together in _combinations(list(undecided)):
        if not notes.keys() & set(together):
            note = pair.difference(together)
            if note:
                notes[together[-1]] = note
    ranges = {
        name: replace(one, note=notes[name]) if name in notes else replace(one, low=1)
        for name, one in undecided.items()
    }
    return replace(interface, sizes={**interface.sizes, **ranges})


def _combinations(names: list[str]) -> Iterator[tuple[str, ...]]:
    counts = range(1, len(names) + 1) if len(names) <= _MOST_TOGETHER else (1, len(names))
    for count in counts:
        yield from combinations(names, count)


class _Pair:
    """A model and its graph, run on the same inputs."""

    def __init__(self, model: nn.Module, module: CapturedModule, inputs: Inputs) -> None:
        assert module.interface is not None
        self._interface = module.interface
        self._leaves = self._interface.flatten(*inputs)
        self._sizes = self._interface.sizes_of(self._leaves)
        self._model, self._module = model, module
        self._written = written_tensors(module)

    def difference(self, names: Sequence[str]) -> str:
        """Why these sizes cannot be one, in words; empty if they can."""
        what = " and ".join(f"{name} 1" for name in names)
        tensors = (*self._model.parameters(), *self._model.buffers(), *self._leaves)
        if any(isinstance(value, Tensor) and value.is_meta for value in tensors):
            return f"{what} was not compared with the model, which has no values"
        compared = False
        for sizes in self._around(names):
            if any(broken not in names for broken in self._interface.violations(sizes)):
                continue  # refused at the door
            compared = True
            reason = self._difference_at(sizes, what)
            if reason:
                return reason
        return "" if compared else f"{what} breaks a relation between sizes"

    def _around(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """These sizes at one, the others at the example's and at their smallest.

        A condition on two sizes that always holds from two on leaves no guard either. If it fails
        with a one, it fails first where the others are smallest.
        """
        interface = self._interface
        others = [name for name in interface.independent if name not in names]
        values = [(self._sizes[name], interface.sizes[name].low) for name in others]
        corners = product(*values) if len(others) < _MOST_TOGETHER else zip(*values, strict=True)
        for corner in dict.fromkeys(corners):
            chosen = dict(zip(others, corner, strict=True)) | dict.fromkeys(names, 1)
            yield interface.complete(chosen)

    def _difference_at(self, sizes: Sizes, what: str) -> str:
        leaves = self._inputs(sizes)
        try:
            expected = self._of_model(leaves)
        except Exception as error:  # whatever the model raises where it does not run
            return f"the model was not compared at {what}: {type(error).__name__}"
        try:
            found = self._of_graph(leaves)
        except Exception as error:  # the graph's shapes do not fit there
            return f"the model computes otherwise at {what}: {type(error).__name__} in the graph"
        return "" if _same(expected, found) else f"the model computes otherwise at {what}"

    def _inputs(self, sizes: Sizes) -> list[Any]:
        """Inputs of these sizes with values like the example's, no two alike."""
        generator = torch.Generator().manual_seed(0)
        leaves = []
        for leaf, value in zip(self._interface.inputs, self._leaves, strict=True):
            if isinstance(leaf, TensorInput):
                wanted = {i: sizes[n] for i, n in enumerate(leaf.shape) if isinstance(n, str)}
                value = drawn_like(resized(value, wanted), generator)
            elif isinstance(leaf, SizeInput):
                value = sizes[leaf.size]
            leaves.append(value)
        return leaves

    def _of_model(self, leaves: list[Any]) -> Any:
        """What a copy of the model gives; it shares the parameters that nothing writes to."""
        kept = (p for name, p in self._model.named_parameters() if name not in self._written)
        twin = copy.deepcopy(self._model, {id(parameter): parameter for parameter in kept})
        if isinstance(twin, CapturedModule):
            twin.interface = None  # what it refuses is for the graph's to say
        args, kwargs = pytree.tree_unflatten(copies(leaves), self._interface.spec)
        with self._alike(leaves), evaluating(twin), whole_attention():
            return twin(*args, **kwargs)

    def _of_graph(self, leaves: list[Any]) -> Any:
        """What the graph gives, node by node: its interface is what is to be found out."""
        runner = fx.Interpreter(isolated(self._module, self._written))
        with self._alike(leaves):
            found = runner.run(*copies(leaves), enable_io_processing=False)
        return self._module.graph.process_outputs(found)

    @contextmanager
    def _alike(self, leaves: list[Any]) -> Iterator[None]:
        """Both draw the same random numbers."""
        devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
        with EXCLUSIVE, torch.random.fork_rng(list(devices)), torch.no_grad():
            torch.manual_seed(0)
            yield


def _same(expected: Any, found: Any) -> bool:
    ours, theirs = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    return len(ours) == len(theirs) and all(map(_agrees, ours, theirs))


def _agrees(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return type(expected) is type(found) and bool(expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    tolerance = TOLERANCE.get(expected.dtype)
    if tolerance is None or not expected.numel():
        return torch.equal(expected, found)
    usable = expected.isfinite()
    if not torch.allclose(expected[~usable], found[~usable], rtol=0, atol=0, equal_nan=True):
        return False
    largest = expected[usable].abs().max() if bool(usable.any()) else expected.new_zeros(())
    return bool(((expected - found)[usable].abs() <= tolerance * largest).all())
