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
from fxcompress.edit.plan import Offset, Plan, Project, Reparametrize, Replace
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor
from fxcompress.verify.compare import doubled
from fxcompress.verify.constants import additions
from fxcompress.verify.masked import Addition, masked_forward
from fxcompress.verify.scatter import mixes, scatter_of
from fxcompress.verify.values import planned_values


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


def reference_of(old: CapturedModule, coupling: Coupling, plan: Plan) -> Reference:
    """Carry out `plan` on the dense graph, without the rewriter."""
    values = planned_values(old, plan)

    def value_of(name: str) -> Tensor:
        value = values.get(name)
        value = find_tensor(old, name) if value is None else value
        assert value is not None
        return value

    scatter = scatter_of([edit for edit in plan.edits if isinstance(edit, Project)])
    with torch.no_grad():
        added = additions(old, coupling, plan.edits, scatter, value_of)
        mixed = scatter.parameters(coupling, value_of)
    return Reference(old, coupling, scatter.places, values | mixed, added)


def kind_of(plan: Plan) -> str:
    """The name of the proof: of the edit that changes most."""
    projects = [edit for edit in plan.edits if isinstance(edit, Project)]
    if any(mixes(edit) for edit in projects):
        return "scattered"
    if projects:
        return "zero-masked"
    kinds = {type(edit) for edit in plan.edits}
    names = {Offset: "offset", Reparametrize: "reparametrized", Replace: "replaced"}
    return next((name for kind, name in names.items() if kind in kinds), "bit-identical")


def compared_by(plan: Plan) -> str:
    """What was compared, in words."""
    count = Counter(_what(edit) for edit in plan.edits)
    count["constants seen by consumers"] = sum(
        isinstance(edit, Project) and edit.shift is not None for edit in plan.edits
    )
    parts = [f"{what} ({number})" for what, number in count.items() if number]
    return "outputs with those of the dense graph" + (f" with {', '.join(parts)}" if parts else "")


def _what(edit: object) -> str:
    if isinstance(edit, Project):
        return "scattered units" if mixes(edit) else "zero-masked units"
    names: dict[type, str] = {
        Offset: "added offsets",
        Reparametrize: "finalised values",
        Replace: "replaced values",
    }
    return names[type(edit)]
