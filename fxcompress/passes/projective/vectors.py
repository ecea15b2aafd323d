"""A group's units as vectors, and the norms of what reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.graph.norms import batch_norms
from fxcompress.graph.schema import packet_of
from fxcompress.layers.weights import Producer, Rows, consumers, entries, producers
from fxcompress.passes.elimination import Vectors, arc_cosine, scores
from fxcompress.passes.structured.method import DeclinedError
from fxcompress.passes.structured.readers import readers
from fxcompress.program import Program
from fxcompress.rules.windows import is_max_pool


def vectors_of(
    program: Program, group: ChannelGroup, rows: Rows = "raw", kernel: str | None = None
) -> list[Vectors]:
    """The vectors of each cell: the weights of all layers that write the units, side by side.

    Several layers are scaled to the same mean squared length, so that none outweighs the others.

    Raises:
        DeclinedError: The kernel is for another nonlinearity than the group's.
    """
    own = writers(program, group)
    if kernel:
        check_relu(program, group)
        grams = _products([each.matrix("effective") for each in own], scaled=False)
        return [Vectors.of_gram(arc_cosine(gram)) for gram in grams]
    matrices = [each.matrix(rows, bias=rows == "effective") for each in own]
    if len(matrices) == 1:
        return [Vectors.of_rows(cell) for cell in matrices[0]]
    return [Vectors.of_gram(gram) for gram in _products(matrices, scaled=True)]


def writers(program: Program, group: ChannelGroup) -> list[Producer]:
    """What writes the units; depthwise layers, which only filter them, where nothing else does."""
    own = producers(program, group)
    return [each for each in own if not each.filters] or list(own)


def reader_norms(program: Program, group: ChannelGroup) -> Tensor:
    """The length of all weights that read each unit, shape (cells, units)."""
    squares = torch.zeros(group.cells, group.units, dtype=torch.float64)
    for one in readers(program, group):
        squares = squares.to(one.index.device) + one.columns(program).square().sum((2, 3))
    return squares.sqrt()


def mean_of_scores(program: Program, group: ChannelGroup, lam: float, relative: bool) -> Tensor:
    """The mean over layers of each unit's distance, by its mean over units, shape (cells, units).

    Layers are those that write the units and those that read them; norms score by their scale.
    """
    written = producers(program, group)
    read = {each.weight: each.columns for each in consumers(program, group)}
    members = [_distances(each.rows, lam, relative) for each in written]
    members += [_distances(columns, lam, relative) for columns in read.values()]
    members += [
        entries(program, group, each, each.norm.weight).abs().mean(2)
        for each in written
        if each.norm is not None and each.norm.weight is not None
    ]
    mean = torch.stack(members).mean(0)
    return mean / mean.mean().clamp(min=torch.finfo(mean.dtype).tiny)


def _distances(rows: Tensor, lam: float, relative: bool) -> Tensor:
    ridge = lam * float(rows.square().sum(2).mean()) if relative else lam
    return torch.stack([scores(cell, ridge).distances for cell in rows])


def _products(matrices: list[Tensor], scaled: bool) -> Tensor:
    """The Gram matrix of each cell, summed over layers: that of the rows side by side."""
    total = torch.zeros(1, dtype=torch.float64, device=matrices[0].device)
    for matrix in matrices:
        gram = matrix @ matrix.mT
        length = gram.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        total = total + (gram / torch.where(length > 0, length, 1) if scaled else gram)
    return total


def check_relu(program: Program, group: ChannelGroup) -> None:
    """That a ReLU is the only nonlinearity of the units.

    Pooling by maxima may come with it, since it commutes with it, and so may what is affine.

    Raises:
        DeclinedError: It is not.
    """
    acting = program.analysis.coupling.acting.get(group.factor, frozenset())
    nodes = [node for node in program.module.graph.nodes if node.name in acting]
    others = [node for node in nodes if packet_of(node).removesuffix("_") != "aten::relu"]
    folded = _folded(program)
    beside = all(node.name in folded or is_max_pool(node) for node in others)
    if len(others) == len(nodes) or not beside:
        raise DeclinedError(
            group,
            "kernel='arccos' is for units behind a ReLU alone, and these meet "
            f"{', '.join(group.nonlinearities) or 'none'}",
        )


def _folded(program: Program) -> set[str]:
    """The names of what folds into the rows before a ReLU: linear maps with their biases, norms by
    running statistics, and constants.
    """
    maps = {one.node for one in program.maps if one.direct}
    norms = {norm.node.name for norm in batch_norms(program.module)}
    nodes = program.module.graph.nodes
    added = {node.name for node in nodes if packet_of(node).removesuffix("_") == "aten::add"}
    return maps | norms | added
