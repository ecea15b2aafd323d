"""What edits are given to look at and to change: a module, its analysis, and what came before."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, Factor
from fxcompress.axes.transforms import Choice
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import value_of
from fxcompress.graph.parameters import Names, find_tensor, names_of, replace_tensor, set_tensor
from fxcompress.graph.through import modules_read
from fxcompress.layers.maps import LinearMap, linear_maps


@dataclass(eq=False)
class Context:
    """A captured module with its analysis, on the way through the edits of a plan.

    ``Edit.check`` and ``Edit.proof`` are given the module as it was before the plan, ``Edit.apply``
    a copy to change.

    Attributes:
        module: The module.
        coupling: The analysis of the module before the plan.
        dense: The module before the plan, where `module` is a copy to change.
        encoders: What becomes of the axes that produce the units of each factor.
        decoders: What becomes of the axes that consume them.
        trained: The modules that give E and D, of factors whose matrices train.
        made: The axes of parameters that edits have made, by name.
        replaced: Names of tensors whose values edits have replaced.
    """

    module: CapturedModule
    coupling: Coupling
    dense: CapturedModule | None = None
    encoders: dict[Factor, Choice] = field(default_factory=dict)
    decoders: dict[Factor, Choice] = field(default_factory=dict)
    trained: dict[Factor, tuple[nn.Module, nn.Module]] = field(default_factory=dict)
    made: dict[str, Axes] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    _names: Names | None = None

    @property
    def names(self) -> Names:
        """Every name of each parameter and buffer."""
        if self._names is None:
            self._names = names_of(self.module)
        return self._names

    @property
    def before(self) -> CapturedModule:
        """The module before the plan."""
        return self.module if self.dense is None else self.dense

    @cached_property
    def maps(self) -> tuple[LinearMap, ...]:
        """The linear maps before the plan. Their nodes have the same names in `module`."""
        return linear_maps(self.before, self.coupling)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of this name, itself.

        Raises:
            PlanError: There is none, or it is kept in another form.
        """
        value = find_tensor(self.module, name)
        if value is None:
            if name in modules_read(self.module):
                raise PlanError(f"{name} is kept in another form; finalize the program first")
            raise PlanError(
                f"the program has no parameter or buffer {name!r}; "
                "program.module.state_dict() has their names"
            )
        return value

    def value(self, name: str) -> Tensor:
        """Its values, detached: read now if they are lazy.

        Raises:
            PlanError: As `tensor`.
        """
        return value_of(self.tensor(name))

    def replace(self, name: str, value: Tensor) -> None:
        """Give a parameter or buffer another value, under every name it has."""
        replace_tensor(self.module, self.names, name, value)

    def make(self, name: str, value: Tensor, axes: Axes) -> None:
        """Add a parameter with these axes; projections of the same plan change it too."""
        set_tensor(self.module, name, value)
        self.made[name] = axes
        self._names = None

    def renamed(self) -> None:
        """Say that tensors have come or gone."""
        self._names = None
