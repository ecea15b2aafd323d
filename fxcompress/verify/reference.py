"""The reference of a pass: what the dense graph gives when a plan is carried out on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.transforms import Choices
from fxcompress.edit.proof import Proof
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import read_tensor
from fxcompress.graph.precision import doubled
from fxcompress.verify.constants import additions
from fxcompress.verify.masked import Addition, masked_forward
from fxcompress.verify.scatter import scatter_of


@dataclass(frozen=True)
class Reference:
    """A dense graph with the values, masks and constants of a plan.

    Attributes:
        old: The dense module, in evaluation mode.
        coupling: Its analysis.
        places: The places that stay, by factor.
        values: What parameters and buffers are read as.
        added: Constants, by the nodes whose values take them.
    """

    old: CapturedModule
    coupling: Coupling
    places: Choices
    values: Mapping[str, Tensor]
    added: Mapping[str, Sequence[Addition]]

    def __call__(
        self, new: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The outputs; `new` gives the arguments of operations over changed factors."""
        return masked_forward(
            self.old, new, self.coupling, self.places, args, kwargs, self.values, self.added
        )

    def double(self, old: CapturedModule) -> Reference:
        """The same in double precision, on such a copy of the dense module.

        Values that the plan computes stay rounded, as they are in the program it made.
        """
        values = {name: doubled(value) for name, value in self.values.items()}
        return replace(self, old=old, values=values)


def reference_of(old: CapturedModule, coupling: Coupling, proof: Proof) -> Reference:
    """Carry out a plan on the dense graph, as its proof says, without the rewriter."""

    def value_of(name: str) -> Tensor:
        value = proof.reads.get(name)
        return read_tensor(old, name) if value is None else value

    scatter = scatter_of(proof.projects)
    with torch.no_grad():
        added = additions(old, coupling, proof, scatter, value_of)
        mixed = scatter.parameters(coupling, value_of)
    return Reference(old, coupling, scatter.places, {**proof.reads, **mixed}, added)


def compared_by(proof: Proof) -> str:
    """What was compared, in words."""
    parts = [f"{what} ({number})" for what, number in Counter(proof.words).items()]
    return "outputs with those of the dense graph" + (f" with {', '.join(parts)}" if parts else "")
