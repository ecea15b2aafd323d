"""Linear maps: how every weight that multiplies a value is a matrix, whatever operator it is in.

The rules say it with their letters (`fxcompress.rules.contractions`). A letter that the weight
shares with its value and the output numbers *groups*, one that it shares with the output alone
*outputs*, one that it shares with the value alone *inputs*, and one of its own *taps*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor, fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import Analysed
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import parameter_of, shape_of
from fxcompress.graph.window import Window
from fxcompress.layers.layouts import Source, sources_of
from fxcompress.layers.letters import Numbered, multiplied, numbered
from fxcompress.rules import Contraction


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A weight as a matrix for each group, of outputs by (inputs · taps).

    A weight that several nodes read has a map at each of them.

    Attributes:
        weight: Name of the parameter (or buffer).
        node: Name of the node that applies it, and gives its output.
        values: Names of the nodes it reads: one; several where the operator is linear in each
            (``bilinear``); none where the operator makes the value itself, as a recurrent layer its
            state.
        groups: How many matrices there are, each with inputs and outputs of its own.
        outputs: Rows of each matrix.
        inputs: Columns of each matrix, for each of the taps.
        taps: Positions that a kernel covers at once; 1 without a kernel.
        bias: Name of the parameter that the node adds as it is, one entry for each output.
        addend: The operator's argument that it adds to the product (``bias``); None where it has
            none.
        added: Name of the node given for it, the bias or another.
        scale: What the operator multiplies the product by.
        window: Where a convolution reads.
        computed: Name of the node that computes what is multiplied from the weight, and does more
            than move its entries: a norm of the weight, a mask. None where the entries themselves
            are multiplied.
        direct: Whether the node gives the product and what is added to it, and nothing else. A
            recurrent layer does not, nor one whose rows are routed to groups.
        shape: Of the weight.
    """

    weight: str
    node: str
    values: tuple[str, ...]
    groups: int
    outputs: int
    inputs: int
    taps: int
    bias: str | None
    addend: str | None
    added: str | None
    scale: float
    window: Window | None
    computed: str | None
    direct: bool
    shape: tuple[int, ...]
    letters: Numbered = field(repr=False)
    contraction: Contraction = field(repr=False)

    @property
    def value(self) -> str | None:
        """The only node it reads; None where there is none or several."""
        return self.values[0] if len(self.values) == 1 else None

    @property
    def whole(self) -> bool:
        """Whether every entry of the weight is in the matrix; a fused weight has a map a part."""
        return prod(self.shape) == self.groups * self.outputs * self.inputs * self.taps

    @property
    def input_axis(self) -> int | None:
        """The axis of the weight along which neighbouring inputs lie, where they fill it; of two
        axes that inputs run over, the inner one. None where they are a part of an axis.
        """
        return self.letters.axis_of(self.letters.inputs[-1:], self.shape)

    @property
    def output_axis(self) -> int | None:
        """The axis of the node's output that runs over groups and outputs, from the right (-1 is
        the last); None where there is none alone.
        """
        own, axes = (*self.letters.groups, *self.letters.outputs), self.contraction.output_axes
        return axes.index(own) - len(axes) if own in axes else None

    @property
    def plain(self) -> bool:
        """Whether the node gives matrix times input, plus what it adds, with the entries of the
        weight as they are, each in its place.
        """
        scaled = self.contraction.scales != (1, 1)
        return self.direct and self.whole and self.computed is None and not scaled

    def matrix(self, value: Tensor) -> Tensor:
        """A tensor of the weight's shape as a matrix, shape (groups, outputs, inputs · taps).

        Args:
            value: The weight itself, a gradient, a mask, scores. Where memory allows it is shared.

        Raises:
            PlanError: The shape is another.
        """
        if value.shape != self.shape:
            raise PlanError(
                f"value has shape {tuple(value.shape)}, and {self.weight} has {self.shape}"
            )
        return self.letters.layout.read(value).reshape(
            self.groups, self.outputs, self.inputs * self.taps
        )

    def entries(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: a tensor of the weight's shape.

        Args:
            matrix: Shape (groups, outputs, inputs · taps). Entries of the weight that are in none
                (other parts of a fused weight) are zero in the result.

        Raises:
            PlanError: The shape is another.
        """
        expected = (self.groups, self.outputs, self.inputs * self.taps)
        if matrix.shape != expected:
            raise PlanError(
                f"matrix has shape {tuple(matrix.shape)}; the map of {self.weight} at "
                f"'{self.node}' has {expected}"
            )
        return self.letters.layout.written(matrix, self.shape)

    def at_outputs(self, values: Tensor) -> Tensor:
        """A value for each output, at every entry of the weight that belongs to it.

        Args:
            values: Shape (groups · outputs,), in the order of the output's axis.
        """
        shape = (self.groups, self.outputs, self.inputs * self.taps)
        return self.entries(values.reshape(self.groups, self.outputs, 1).expand(shape))

    def inputs_from(self, *values: Tensor) -> Tensor:
        """What the matrices multiply, shape (groups, samples, inputs · taps).

        Samples are all that the outputs are besides groups and outputs: batch and positions.

        Args:
            values: Of the nodes in `values`, in their order.

        Raises:
            PlanError: The map is not direct, or the number of values is another.
        """
        self._check_direct(len(values))
        first, *rest = values
        views = self.window.views(first) if self.window else [first] * self.taps
        order = (*self.letters.groups, *self.letters.samples, *self.letters.inputs)
        axes, sizes = self.contraction.value_axes, self._sizes
        taps = [multiplied((view, *rest), axes, sizes, order) for view in views]
        return torch.stack(taps, -1).reshape(self.groups, -1, self.inputs * self.taps)

    def outputs_from(self, value: Tensor) -> Tensor:
        """The node's own output in the same order, shape (groups, samples, outputs).

        Args:
            value: Of the node `node`.

        Raises:
            PlanError: The map is not direct.
        """
        self._check_direct(len(self.values))
        order = (*self.letters.groups, *self.letters.samples, *self.letters.outputs)
        axes = (self.contraction.output_axes,)
        return multiplied((value,), axes, self._sizes, order).reshape(self.groups, -1, self.outputs)

    @property
    def _sizes(self) -> dict[str, int]:
        return {letter: size for axis in self.contraction.axes for letter, size in axis}

    def _check_direct(self, given: int) -> None:
        if not self.direct:
            raise PlanError(
                f"'{self.node}' applies {self.weight} inside, so its values are not those of any "
                "node; ask only for maps that are direct"
            )
        if given != len(self.values):
            raise PlanError(
                f"the map of {self.weight} at '{self.node}' reads {len(self.values)} values "
                f"({', '.join(self.values)}), not {given}"
            )


class Mapped(Analysed, Protocol):
    """What was analysed, with its linear maps: a program, for those that need no more of one."""

    @property
    def maps(self) -> tuple[LinearMap, ...]: ...


def linear_maps(module: CapturedModule, coupling: Coupling) -> tuple[LinearMap, ...]:
    """The linear maps of a module, in the graph's order.

    Args:
        module: What was analysed.
        coupling: What the analysis knows of it.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    return tuple(
        _map(nodes, contraction, source)
        for contraction in coupling.contractions
        for source in sources_of(nodes[contraction.weight])
    )


def _map(nodes: Mapping[str, fx.Node], one: Contraction, source: Source) -> LinearMap:
    letters = numbered(one, source.layout)
    groups, outputs = letters.count(letters.groups), letters.count(letters.outputs)
    scale, added_scale = one.scales
    added = None if one.added is None else nodes[one.added]
    plain = added is not None and added_scale == 1 and _is_line(added, groups * outputs)
    return LinearMap(
        weight=source.parameter,
        node=one.node,
        values=one.values,
        groups=groups,
        outputs=outputs,
        inputs=letters.count(letters.inputs),
        taps=letters.count(letters.taps),
        bias=parameter_of(added) if plain else None,
        addend=one.addend,
        added=one.added,
        scale=scale,
        window=one.window,
        computed=source.computed,
        direct=not one.inner and not one.routed,
        shape=source.shape,
        letters=letters,
        contraction=one,
    )


def _is_line(added: fx.Node, size: int) -> bool:
    """Whether what is added has one entry for each output."""
    return shape_of(added) == (size,) or (size == 1 and shape_of(added) == ())
