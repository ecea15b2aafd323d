"""What every kind of edit gives; each kind is one file beside this one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fxcompress.arguments import Checked
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.edit.zeros import Masks

if TYPE_CHECKING:
    from fxcompress.edit.project import Project


class Stage(IntEnum):
    """When an edit is applied: values first, widths last, in a stage as the plan has them."""

    VALUES = 0
    CONSTANTS = 1
    WIDTHS = 2


class Edit(Checked):
    """One change of a program, as plain data that applies itself and says what it guarantees.

    A kind of edit is a frozen dataclass under this one. The rewriter, the verification, the costs
    and the report ask for what stands here and for nothing else.

    Attributes:
        stage: When it is applied.
        resizes: Whether projections of the same plan may change the size of what it owns.
    """

    stage: ClassVar[Stage] = Stage.VALUES
    resizes: ClassVar[bool] = True

    @property
    @abstractmethod
    def target(self) -> str:
        """The group or parameter that it is about."""

    @property
    def owns(self) -> str | None:
        """The parameter or buffer whose value it alone gives; None where it gives none."""
        return None

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The new values that parameters get, by name; nothing where values stay."""
        return {}

    @property
    def projects(self) -> tuple[Project, ...]:
        """What becomes of the units of groups; nothing where sizes stay."""
        return ()

    @property
    def masks(self) -> Masks:
        """The entries that it makes zero for good, by parameter."""
        return {}

    @property
    def stored(self) -> Mapping[str, int]:
        """The bytes that parameters take afterwards, where it keeps them in another form."""
        return {}

    @abstractmethod
    def check(self, context: Context) -> None:
        """Refuse what would break the program, before anything is edited.

        Raises:
            PlanError: Naming the group or parameter, the site and the reason.
        """

    @abstractmethod
    def apply(self, context: Context) -> None:
        """Change the module in `context`, a copy that shares its tensors with the program before;
        projections are left in ``context.encoders`` and ``context.decoders``.

        Raises:
            PlanError: It cannot be done.
        """

    @abstractmethod
    def proof(self, context: Context) -> Proof:
        """How it is verified, said of the program before the plan."""


@dataclass(frozen=True, eq=False)
class ParameterEdit(Edit):
    """An edit that alone gives the value of one parameter.

    Attributes:
        parameter: Its name.
    """

    parameter: str

    @property
    def target(self) -> str:
        return self.parameter

    @property
    def owns(self) -> str:
        return self.parameter
