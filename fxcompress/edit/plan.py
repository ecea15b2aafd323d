"""Plans: what a pass decided, as plain data. Only the rewriter edits a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Checked
from fxcompress.axes.transforms import Choice
from fxcompress.report.curves import Curves


@dataclass(frozen=True, eq=False)
class Project(Checked):
    """The n units of `group` become k.

    Attributes:
        group: The group, as the program's analysis names it.
        encode: For a selection the kept indices, int64 of shape (k,), or (cells, k) where cells
            keep units of their own. Otherwise the matrix E of shape (k, n) or (cells, k, n) for
            what produces the units.
        decode: The matrix D of shape (n, k) or (cells, n, k) for what consumes them. None selects
            there what `encode` selects; given beside indices, it lets the units that stay stand in
            for those that go.
        shift: A constant, shape (n,), that consumers see beside the decoded units; it goes into
            their biases.
    """

    group: ChannelGroup
    encode: Tensor
    decode: Tensor | None = None
    shift: Tensor | None = None

    @property
    def encoder(self) -> Choice:
        """What becomes of the axes that produce the units."""
        rank = 3 if self.encode.is_floating_point() else 2
        return Choice(self.encode, self.group.over if self.encode.dim() == rank else ())

    @property
    def decoder(self) -> Choice:
        """What becomes of the axes that consume the units."""
        if self.decode is None:
            return self.encoder
        return Choice(self.decode.mT, self.group.over if self.decode.dim() == 3 else ())

    @property
    def width(self) -> int:
        """Units afterwards, in each cell."""
        return self.encoder.width

    @property
    def selects(self) -> bool:
        """Whether units are only selected, for what produces and for what consumes them."""
        return self.encoder.selects and self.decode is None and self.shift is None


@dataclass(frozen=True)
class Pattern:
    """At most `n` of every `m` consecutive entries along `axis` are not zero."""

    n: int
    m: int
    axis: int

    def holds(self, mask: Tensor) -> bool:
        """Whether a mask, True where entries may be non-zero, adheres to it."""
        if mask.shape[self.axis] % self.m:
            return False
        blocks = mask.movedim(self.axis, -1).unflatten(-1, (-1, self.m))
        return bool((blocks.sum(-1) <= self.n).all())

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True, eq=False)
class Replace(Checked):
    """`parameter` gets new values of the same shape; `mask` is True where they may be non-zero, and
    adheres to `pattern` where one is given.

    Values are replaced before units are projected, so a plan may do both to one parameter.
    """

    parameter: str
    value: Tensor
    mask: Tensor | None = None
    pattern: Pattern | None = None


@runtime_checkable
class Masking(Protocol):
    """A module of `Reparametrize` that makes entries zero for good tells which."""

    def zeros(self) -> tuple[Tensor, Pattern | None]:
        """A mask of the parameter's shape, True where an entry may be non-zero, and what the mask
        adheres to, if to anything.
        """
        ...


@dataclass(frozen=True, eq=False)
class Reparametrize(Checked):
    """`parameter` is read through `module` from now on, until the program is finalised.

    The module takes the parameter and returns a tensor of the same shape and dtype. Where it is
    `Masking`, its zeros are known as those of `Replace` are.
    """

    parameter: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Offset(Checked):
    """A constant that is added to what the linear layer with this weight gives, in all its calls.

    It goes into the layer's bias, into the BatchNorm that alone reads the layer where there is no
    bias, or into a new bias.

    Attributes:
        weight: Name of the layer's weight: of a linear map or a convolution.
        value: Shape (outputs,), before any projection of the plan.
    """

    weight: str
    value: Tensor


Edit = Project | Replace | Reparametrize | Offset


@dataclass(frozen=True, eq=False)
class Plan(Checked):
    """The edits of one pass, with what a person should know about them.

    Attributes:
        edits: At most one `Project` for a group, and one other edit for a parameter.
        notes: Sentences for the report.
        curves: The score that each group would keep at each width, where scores of groups were
            compared; the widths chosen are marked. ``plan.curves.plot(path)`` draws them.
    """

    edits: tuple[Edit, ...]
    notes: tuple[str, ...] = ()
    curves: Curves | None = None

    @property
    def widths(self) -> dict[ChannelGroup, int]:
        """Units that each projected group keeps (in each cell)."""
        return {edit.group: edit.width for edit in self.edits if isinstance(edit, Project)}
