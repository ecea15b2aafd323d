"""Which axes pass through an op: found by perturbation, confirmed by the law of the rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.graph.precision import tolerance_of
from fxcompress.probe.experiment import Draw, Experiment, ProbeError, random_tensor, same

Place = tuple[int, int]
"""The number of a tensor and one of its axes."""

DRAWS = 3
STEPS = 12
"""Sizes tried in every draw; an axis of up to so many indices is tried at all of them."""


@dataclass(frozen=True)
class Tie:
    """Axes that keep the same indices.

    Attributes:
        inputs: Axes of operands.
        outputs: Axes of results.
        quiet: Whether zeros at a unit, in all these operands, give zeros there.
    """

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    zero_preserving: bool


@dataclass(frozen=True)
class Relation:
    """What an op does to axes: the ties that were found, or why it was not probed."""

    ties: tuple[Tie, ...] = ()
    refused: str | None = None


def relation(trial: Experiment) -> Relation:
    """Probe an op: perturb, then prove every candidate, then all of them together."""
    cuda = [trial.device] if trial.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # an op may draw without saying so
        try:
            return _relation(trial)
        except ProbeError as failed:
            return Relation(refused=str(failed))


def _relation(trial: Experiment) -> Relation:
    generator = torch.Generator().manual_seed(0)
    draws = [trial.draw(generator, kind) for kind in range(DRAWS)]
    for draw in draws:
        trial.settle(draw)
    candidates = _candidates(trial, draws, generator)
    proved = [tie for tie in candidates if _holds(trial, draws, (tie,), generator)]
    if len(proved) > 1 and not _holds(trial, draws, proved, generator):
        return Relation(refused="its axes pass through alone, but not together")
    return Relation(tuple(_hushed(trial, draws, tie, generator) for tie in proved))


# ---- perturbation


def _candidates(trial: Experiment, draws: Sequence[Draw], generator: torch.Generator) -> list[Tie]:
    """Axes of operands and results that follow each other one to one."""
    import networkx as nx  # slow to import

    graph: nx.Graph[tuple[str, int, int]] = nx.Graph()
    for number, size in enumerate(trial.sizes):
        for dim in range(len(size)):
            if size[dim] > 1:
                for out in _followers(trial, draws, (number, dim), generator):
                    graph.add_edge(("in", number, dim), ("out", *out))
    return [_tie(component) for component in nx.connected_components(graph)]


def _tie(places: Iterable[tuple[str, int, int]]) -> Tie:
    ordered = sorted(places)
    inputs = tuple((number, dim) for side, number, dim in ordered if side == "in")
    outputs = tuple((number, dim) for side, number, dim in ordered if side == "out")
    return Tie(inputs, outputs, zero_preserving=False)


def _followers(
    trial: Experiment, draws: Sequence[Draw], place: Place, generator: torch.Generator
) -> list[Place]:
    """The result axes of which slice i, and no other, changes with slice i of an operand axis."""
    number, dim = place
    size = trial.sizes[number][dim]
    seen = {
        (out, axis): torch.zeros(size, dtype=torch.bool)
        for out, shape in enumerate(trial.shapes)
        for axis, length in enumerate(shape)
        if length == size
    }
    for kind, draw in enumerate(draws):
        before = trial.run(draw)
        for chosen in _telling(size):
            after = trial.run(_perturbed(trial, draw, place, chosen, kind, generator))
            for out, axis in list(seen):
                touched = _touched(before[out], after[out], axis)
                if (touched & ~chosen).any():
                    del seen[out, axis]
                else:
                    seen[out, axis] |= touched
    return [where for where, touched in seen.items() if touched.all()]


def _telling(size: int) -> Iterator[Tensor]:
    """2 ⌈log₂ size⌉ sets of indices such that for any i and k one set holds i and not k."""
    index = torch.arange(size)
    for bit in range((size - 1).bit_length()):
        chosen = (index >> bit) % 2 == 1
        yield chosen
        yield ~chosen


def _perturbed(
    trial: Experiment,
    draw: Draw,
    place: Place,
    chosen: Tensor,
    kind: int,
    generator: torch.Generator,
) -> Draw:
    """The same draw with other values in the chosen slices of one axis."""
    number, dim = place
    value = draw[number].clone()
    slices = chosen.nonzero().flatten().to(value.device)
    shape = (*value.shape[:dim], len(slices), *value.shape[dim + 1 :])
    fresh = random_tensor(shape, value.dtype, generator, kind).to(value.device)
    return {**draw, number: value.index_copy(dim, slices, fresh)}


def _touched(before: Tensor, after: Tensor, dim: int) -> Tensor:
    """The slices in which any bit changed; the same kernel ran, so untouched ones are identical."""
    rest = [axis for axis in range(before.dim()) if axis != dim]
    changed = ~same(before, after)
    return (changed.any(rest) if rest else changed).cpu()


# ---- the law


def _holds(
    trial: Experiment, draws: Sequence[Draw], ties: Sequence[Tie], generator: torch.Generator
) -> bool:
    """``op(slice(x)) == slice(op(x))``, for random slices of many sizes of every draw."""
    sizes = [trial.sizes[number][dim] for number, dim in (tie.inputs[0] for tie in ties)]
    for draw in draws:
        whole = trial.run(draw)
        for step in range(STEPS):
            kept = [_some(size, _width(size, step), generator) for size in sizes]
            inputs = _sliced(draw, [tie.inputs for tie in ties], kept)
            outputs = _sliced(dict(enumerate(whole)), [tie.outputs for tie in ties], kept)
            try:
                found = trial.run(inputs)
            except ProbeError:  # the op does not take this size: the axis cannot shrink
                return False
            if len(found) != len(outputs) or not all(map(_close, found, outputs.values())):
                return False
    return True


def _width(size: int, step: int) -> int:
    """A smaller size: of a short axis every one in turn, of a long one small ones and shares."""
    shares = [1, 2, 3, 5, 8, size // 4, size // 3, size // 2, size // 4 * 3, size - 8, size - 1]
    tried = list(range(1, size)) if size <= STEPS else shares
    return tried[step % len(tried)]


def _some(size: int, kept: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator)[:kept].sort().values


def _sliced(
    values: Draw, places: Sequence[Iterable[Place]], kept: Sequence[Tensor]
) -> dict[int, Tensor]:
    cut = dict(values)
    for own, index in zip(places, kept, strict=True):
        for number, dim in own:
            cut[number] = cut[number].index_select(dim, index.to(cut[number].device))
    return cut


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not (found.is_floating_point() or found.is_complex()):
        return bool((found == expected).all())
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    # Slices are computed by kernels for other sizes, which round otherwise.
    tolerance = scale * tolerance_of(expected.dtype)
    return torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


# ---- zeros


def _hushed(trial: Experiment, draws: Sequence[Draw], tie: Tie, generator: torch.Generator) -> Tie:
    """The tie, quiet if zeros in its operands always gave zeros in its results."""
    number, dim = tie.inputs[0]
    size = trial.sizes[number][dim]
    for draw in draws:
        gone = _some(size, max(1, size // 2), generator)
        results = trial.run(_zeroed(draw, tie.inputs, gone))
        for out, axis in tie.outputs:
            if results[out].index_select(axis, gone.to(results[out].device)).any():
                return tie
    return Tie(tie.inputs, tie.outputs, zero_preserving=True)


def _zeroed(draw: Draw, places: Iterable[Place], gone: Tensor) -> Draw:
    values = dict(draw)
    for number, dim in places:
        value = values[number]
        values[number] = value.index_fill(dim, gone.to(value.device), 0)
    return values
