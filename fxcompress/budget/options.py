"""What a user may ask of a pass that removes units: how much goes, from where, in which steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from fxcompress.analysis.quantities import BUILT_IN, quantity
from fxcompress.arguments import Count, Holds, Interval, Share
from fxcompress.budget.normalise import Normaliser
from fxcompress.budget.rounding import multiple_of
from fxcompress.errors import BudgetError
from fxcompress.recipes import Recipe

Allocation = Literal["uniform", "global", "exact"]
Globs = str | tuple[str, ...]
"""Patterns of names; one alone may stand for a tuple of one."""


def _is_amount(value: float) -> bool:
    return 0 < value <= 1 or (isinstance(value, int) and value > 1)


Amount = Annotated[
    float, Holds("in (0, 1], the share that stays, or an absolute int above 1", _is_amount)
]


@dataclass(frozen=True, kw_only=True, repr=False)
class Limits(Recipe):
    """From where units may go, and how many at most.

    Attributes:
        include: Globs on parameter names; only groups with a parameter that matches may change. A
            pattern with the suffix ``:out`` means only what the layer produces, with ``:in`` only
            what it consumes: ``layer1.*.conv1.weight:out``.
        exclude: Globs of the same kind; groups with a parameter that matches stay as they are.
        groups: Globs on names of groups, as ``fxcompress inspect`` shows them; only those may
            change that match.
        dims: Kinds of groups that may change, of ``heads``, ``qk``, ``vo``, ``mlp``, ``residual``
            and ``channels`` (see `ChannelGroup.kind`); empty for all. ``head dims``, which are
            query, key and value dims at once, need both ``qk`` and ``vo``.
        exact_only: Leave alone groups that lie under a norm or a mean.
        max_ratio: Largest share of units removed from any group.
        min_units: Fewest units that any group keeps (in each cell).
        round_to: ``"auto"`` for the largest of 16, 8, 4 that changes no width by more than an
            eighth; a number; or the name of a target (see `fxcompress.budget.TARGETS`). 1 turns
            rounding off.
        uniform_across_layers: Groups whose layers differ only in the number of a block keep the
            same width.
    """

    error: ClassVar = BudgetError

    include: Globs = ()
    exclude: Globs = ()
    groups: Globs = ()
    dims: str | tuple[str, ...] | None = ()
    exact_only: bool = False
    max_ratio: Annotated[float, Interval("(0, 1]")] = 1.0
    min_units: Count = 1
    round_to: int | str = "auto"
    uniform_across_layers: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, _globs(name, getattr(self, name)))
        names = (self.groups,) if isinstance(self.groups, str) else tuple(self.groups)
        object.__setattr__(self, "groups", names)
        object.__setattr__(self, "dims", self.kinds)
        multiple_of(self.round_to)

    @property
    def kinds(self) -> tuple[str, ...]:
        """`dims` as a tuple."""
        return (self.dims,) if isinstance(self.dims, str) else tuple(self.dims or ())

    def merged(self, other: Limits) -> Limits:
        """These limits and `other`, where each option is given in one of the two at most.

        Raises:
            BudgetError: An option has different values in the two.
        """
        values = {}
        for name in (each.name for each in fields(Limits)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if self._given(name) and other._given(name) and mine != theirs:
                raise BudgetError(
                    f"{name} is {mine!r} in the pass and {theirs!r} in its budget; give it once"
                )
            values[name] = mine if self._given(name) else theirs
        return Limits(**values)


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget(Limits):
    """How much of the model stays: a share in (0, 1] of each quantity given, or an absolute number.

    All quantities given must hold, and the result is never above any of them.

    Attributes:
        flops: Floating-point operations at the example inputs.
        params: Parameters.
        macs: Multiply-accumulates at the example inputs.
        bytes: Bytes of parameters and buffers.
        quantities: Other registered quantities by name (see `fxcompress.analysis.quantities`), such
            as a latency by its target: ``{"latency:ort-cpu": 0.5}``.
        allocation: ``uniform`` removes the same share of every group; ``global`` removes the units
            of least score, wherever they are, whatever each of them costs; ``exact`` keeps the
            largest total score that fits, by integer programming over the widths of all groups.
        normaliser: What makes the scores of groups comparable for the latter two: they are divided
            by their ``mean``, ``max`` or ``sum``, standardised (``zscore``), or divided by the sum
            of those not smaller (``lamp``). ``none`` compares them as the criterion gives them.
    """

    error: ClassVar = BudgetError

    flops: Amount | None = None
    params: Amount | None = None
    macs: Amount | None = None
    bytes: Amount | None = None
    quantities: Mapping[str, Amount] = field(default_factory=dict)
    allocation: Allocation = "uniform"
    normaliser: Normaliser = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {name: self.quantities[name] for name in sorted(self.quantities)}
        object.__setattr__(self, "quantities", own)
        for name in own:
            if quantity(name).name in _AMOUNTS:
                raise BudgetError(f"quantities={own!r}: write {name}= for {name!r}")
        if not self.asked:
            raise BudgetError(
                "a budget needs a quantity; write Budget(flops=0.5), or params=, macs=, bytes=, or "
                "quantities={name: share}"
            )

    def __hash__(self) -> int:
        return hash((tuple(self.asked.items()), self.allocation, self.normaliser, self.round_to))

    @property
    def asked(self) -> Mapping[str, float | int]:
        """The quantities given, by name."""
        own = {name: getattr(self, name) for name in _AMOUNTS}
        return {name: amount for name, amount in own.items() if amount is not None} | dict(
            self.quantities
        )

    def asking(self, amounts: Mapping[str, float | int], **limits: Any) -> Self:
        """The same budget with other amounts of the quantities it has, and other limits."""
        own: dict[str, Any] = {n: amount for n, amount in amounts.items() if n in _AMOUNTS}
        others = {name: amount for name, amount in amounts.items() if name not in own}
        return replace(self, **own, quantities=others, **limits)

    def spelled(self, name: str, amount: float) -> str:
        """How a quantity is asked for in code."""
        return f"{name}={amount}" if name in _AMOUNTS else f"quantities={{{name!r}: {amount}}}"


_AMOUNTS = tuple(each.name for each in fields(Budget) if each.name in BUILT_IN)
"""The quantities that are arguments of their own."""


@dataclass(frozen=True, repr=False)
class Sizing(Limits):
    """Base of the passes that remove units: a ratio or a budget, and limits.

    Neither is asked for before a pass plans: a method that is another's criterion has none.

    Attributes:
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    error: ClassVar = BudgetError

    ratio: Share | None = field(default=None, kw_only=False)
    budget: Budget | None = field(default=None, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and self.budget is not None:
            raise BudgetError(self._either)

    def check(self) -> None:
        """Refuse to plan without a size.

        Raises:
            BudgetError: There is neither a ratio nor a budget.
        """
        if self.ratio is None and self.budget is None:
            raise BudgetError(self._either)

    @property
    def _either(self) -> str:
        return (
            f"{type(self).__name__} needs either ratio= (the share of units removed from every "
            "group) or budget= (the share of the model that stays)"
        )

    @property
    def limits(self) -> Limits:
        """The limits that hold: the pass's own and its budget's."""
        own = self.made(Limits)
        return own if self.budget is None else own.merged(self.budget)


def _globs(name: str, value: Globs) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if pattern.partition(":")[2] not in ("", "in", "out"):
            raise BudgetError(
                f"{name}={pattern!r}: give globs on parameter names, such as 'layer1.*', "
                "'layer1.0.conv1.weight:out' or '*.weight:in'"
            )
    return patterns
