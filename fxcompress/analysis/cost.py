"""What a model costs, and what it would cost after any plan: exact, with no forward pass and no
re-tracing.

Every size is an expression over factors, so FLOPs, parameters and bytes are polynomials in the
factors' widths; `quantities` has what else may be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.analysis.quantities import PerIndex, Term, quantities
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dynamic_dims, is_tensor, shape_of
from fxcompress.graph.parameters import names_of
from fxcompress.graph.through import keeps
from fxcompress.rules import Work


@dataclass(frozen=True)
class Cost:
    """What a model needs for the example inputs, by quantity (see `quantities`)."""

    amounts: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.amounts[name]

    @property
    def flops(self) -> int:
        """Floating-point operations of the linear maps (a multiply and an add are two), as
        `torch.utils.flop_counter` counts.
        """
        return self["flops"]

    @property
    def macs(self) -> int:
        """Multiply-accumulates: half the FLOPs."""
        return self["macs"]

    @property
    def params(self) -> int:
        """Parameters; tied ones count once."""
        return self["params"]

    @property
    def bytes(self) -> int:
        """Bytes of the parameters and buffers."""
        return self["bytes"]

    def share(self, dense: Cost) -> dict[str, float]:
        """Each quantity as a share of that of `dense`."""
        return {name: own / max(dense[name], 1) for name, own in self.amounts.items()}


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer: its axes (none if the graph does not read it) and its size.

    Attributes:
        name: One of its names.
        axes: Its axes.
        numel: Its entries.
        itemsize: Bytes of each.
        trainable: Whether it counts among the parameters.
        aliases: All its names.
        packed: The bytes it takes where it is kept in another form.
    """

    name: str
    axes: Axes
    numel: int
    itemsize: int
    trainable: bool
    aliases: frozenset[str] = frozenset()
    packed: int | None = None

    def term(self, each: int = 1) -> PerIndex:
        """`each` for every entry."""
        return PerIndex(each, self.axes) if self.axes else PerIndex(each * self.numel)

    def size(self) -> PerIndex:
        """Its bytes."""
        return self.term(self.itemsize) if self.packed is None else PerIndex(self.packed)


@dataclass(frozen=True)
class CostModel:
    """What the quantities of a module are made of.

    Attributes:
        work: The operations of every linear map.
        stored: The parameters and buffers; tied ones once.
        batch: The sizes of factors that are not as captured: the batch, where one example counts.
    """

    work: tuple[Work, ...]
    stored: tuple[Stored, ...]
    batch: Mapping[Factor, int] = field(default_factory=dict)

    def __call__(self, widths: Mapping[ChannelGroup, int] | None = None) -> Cost:
        """The cost when each given group keeps so many units (in each cell)."""
        factors = {group.factor: width for group, width in (widths or {}).items()}
        factors |= dict(self.batch)

        @cache  # MACs are half of the same sum as FLOPs
        def total(terms: Callable[[CostModel], Iterable[Term]]) -> int:
            return sum(term.value(factors) for term in terms(self))

        return Cost({q.name: total(q.terms) // q.unit for q in quantities().values()})

    def keeping(self, stored: Mapping[str, int]) -> CostModel:
        """The same where each given parameter takes so many bytes, kept in another form."""

        def packed(one: Stored) -> Stored:
            found = one.aliases & stored.keys()
            return replace(one, packed=stored[min(found)]) if found else one

        return replace(self, stored=tuple(map(packed, self.stored)))


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
    names = names_of(module)
    axes = {id(tensors[name]): own for name, own in read if name in tensors}
    stored = {
        id(tensor): Stored(
            name,
            axes.get(id(tensor), ()),
            tensor.numel(),
            tensor.element_size(),
            tensor.requires_grad or name in parameters,
            names[name],
        )
        for name, tensor in tensors.items()
    }
    # A parameter in another form lies in buffers, which have its bytes; it is one all the same.
    kept = {
        id(next(module.get_submodule(str(node.target)).buffers())): Stored(
            str(node.target), (), prod(shape_of(node)), 0, True, packed=0
        )
        for node in module.graph.find_nodes(op="call_module")
        if keeps(node)
    }
    batch = _free_batch(coupling, module) if single else {}
    return CostModel(coupling.work, (*stored.values(), *kept.values()), batch)


def _free_batch(coupling: Coupling, module: CapturedModule) -> dict[Factor, int]:
    """The factors of the inputs' free first axes, as one example each."""
    inputs = (node for node in module.graph.find_nodes(op="placeholder") if is_tensor(node))
    free = (coupling.axes[node.name][0] for node in inputs if 0 in dynamic_dims(node))
    return {leaf: 1 for expr in free for leaf in leaves(expr)}
