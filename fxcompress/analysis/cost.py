"""What a model costs, and what it would cost after any plan: exact, with no forward pass and no
re-tracing.

Every size is an expression over factors, so FLOPs, parameters and bytes are polynomials in the
factors' widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.axes.transforms import size_of
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dynamic_dims, is_tensor
from fxcompress.rules import Work


@dataclass(frozen=True)
class Cost:
    """What a model needs for the example inputs.

    Attributes:
        flops: Floating-point operations of the linear maps (a multiply and an add are two), as
            `torch.utils.flop_counter` counts.
        params: Parameters; tied ones count once.
        bytes: Bytes of the parameters and buffers.
    """

    flops: int
    params: int
    bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates: half the FLOPs."""
        return self.flops // 2

    def share(self, dense: Cost) -> dict[str, float]:
        """Each quantity as a share of that of `dense`."""
        names = ("flops", "macs", "params", "bytes")
        return {name: getattr(self, name) / max(getattr(dense, name), 1) for name in names}


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer: its axes (none if the graph does not read it) and its size."""

    axes: Axes
    numel: int
    itemsize: int
    trainable: bool


@dataclass(frozen=True)
class CostModel:
    """Costs as polynomials in the widths of factors."""

    work: tuple[Work, ...]
    stored: tuple[Stored, ...]
    batch: Mapping[Factor, int] = field(default_factory=dict)

    def __call__(self, widths: Mapping[ChannelGroup, int] | None = None) -> Cost:
        """The cost when each given group keeps so many units (in each cell)."""
        factors = {group.factor: width for group, width in (widths or {}).items()} | dict(
            self.batch
        )
        numels = [_numel(one, factors) for one in self.stored]
        return Cost(
            flops=sum(
                w.coefficient * prod(size_of(expr, factors) for expr in w.exprs) for w in self.work
            ),
            params=sum(n for n, one in zip(numels, self.stored, strict=True) if one.trainable),
            bytes=sum(n * one.itemsize for n, one in zip(numels, self.stored, strict=True)),
        )


def _numel(one: Stored, widths: Mapping[Factor, int]) -> int:
    return prod(size_of(expr, widths) for expr in one.axes) if one.axes else one.numel


def cost_model(coupling: Coupling, module: CapturedModule, single: bool = False) -> CostModel:
    """The cost polynomials of a module; tensors registered under several names count once.

    Args:
        coupling: The analysis of the module.
        module: The module.
        single: Count the work of one example, where the batch was captured as two.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    tensors = parameters | dict(module.named_buffers(remove_duplicate=False))
    read = coupling.parameters.items()
    axes = {id(tensors[name]): own for name, own in read if name in tensors}
    stored = {
        id(tensor): Stored(
            axes.get(id(tensor), ()),
            tensor.numel(),
            tensor.element_size(),
            tensor.requires_grad or name in parameters,
        )
        for name, tensor in tensors.items()
    }
    batch = _free_batch(coupling, module) if single else {}
    return CostModel(coupling.work, tuple(stored.values()), batch)


def _free_batch(coupling: Coupling, module: CapturedModule) -> dict[Factor, int]:
    """The factors of the inputs' free first axes, as one example each."""
    inputs = (node for node in module.graph.find_nodes(op="placeholder") if is_tensor(node))
    free = (coupling.axes[node.name][0] for node in inputs if 0 in dynamic_dims(node))
    return {leaf: 1 for expr in free for leaf in leaves(expr)}
