"""What a compilation did, as plain data: sizes, groups, passes and proofs.

`Report` is filled in by the compiler and read by people: ``str(report)`` is a table for a terminal,
`Report.to_html` a page for a browser, `Report.to_dict` and `Report.from_dict` the same as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.quantities import BUILT_IN, quantities
from fxcompress.arguments import FilePath, Interval, checked
from fxcompress.errors import FxCompressError, LoadError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Change",
    "Check",
    "FrozenGroup",
    "GroupChange",
    "PassRun",
    "Report",
    "SparseParameter",
    "StoredParameter",
]

NOT_RUN = "not run"
"""The kind of a check that could not be made."""


@dataclass(frozen=True)
class Change:
    """A number of the dense program and of the compressed one."""

    before: int = 0
    after: int = 0

    @property
    def ratio(self) -> float:
        """The share that is left; 1 where there was nothing."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class GroupChange:
    """The units of one group before and after.

    Attributes:
        name: The group's name.
        kind: What a unit is: ``channels``, ``heads`` …
        units: Units before and after; in each cell, where there are several.
        cells: How many index sets the group has.
        sites: Where the units lie: ``{"parameter", "dim", "role"}`` each.
    """

    name: str
    kind: str
    units: Change
    cells: int = 1
    sites: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class FrozenGroup:
    """A group that may not shrink, and why."""

    name: str
    reason: str
    units: int = 0


@dataclass(frozen=True)
class SparseParameter:
    """A parameter with zeros for good: their share, and their pattern (``2:4``), if any."""

    name: str
    zeros: float
    pattern: str = ""


@dataclass(frozen=True)
class StoredParameter:
    """A parameter that is kept in another form: which, and its bytes as it was and as it is."""

    name: str
    form: str
    bytes: Change


@dataclass(frozen=True)
class PassRun:
    """One pass: its recipe, how long it took, and what it has to say (rounded widths, say)."""

    repr: str
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One comparison of outputs.

    Attributes:
        kind: The proof: ``bit-identical``, ``zero-masked``, ``scattered``, ``offset``,
            ``reparametrized`` or ``replaced``; see `verify`.
        max_relative_error: Largest difference over largest value; None if not measured.
        tolerance: The largest error that passes; None if not measured.
        ok: Whether the check passed.
        where: After which pass.
        compared: What was compared with what, in words.
        zeroed_error: The same error where the reference was the dense graph whose parameters alone
            are zero at the units that leave; None where it was another, and `compared` says why.
    """

    kind: str
    max_relative_error: float | None
    tolerance: float | None
    ok: bool
    where: str = ""
    compared: str = ""
    zeroed_error: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything worth telling about a program.

    Attributes:
        model: What was compiled.
        sizes: For each quantity that a budget may bound, how much the dense program has and how
            much this one; also as `params`, `flops`, `macs` and `bytes`.
        groups: The groups that may shrink.
        frozen: The groups that may not.
        sparse: The parameters with zeros that are for good.
        stored: The parameters that are kept in another form.
        passes: The passes that ran, in order.
        checks: What was verified after each of them.
        unknown: Operators without a rule, with the nodes that use them.
        probed: Operators without a rule of which experiments told the axes, with the nodes.
        failed: Operators whose axis rule raised an error, with "node: error" each.
        dynamic: For each tensor input, its free axes by name.
        static: Why the batch is not free, if it is not.
        training: In which ways the program does not train as the model does.
        ranges: The sizes that each free axis may have, by its name.
        relations: What else has to hold between them.
    """

    model: str = ""
    sizes: Mapping[str, Change] = field(
        default_factory=lambda: dict.fromkeys(quantities(), Change())
    )
    groups: tuple[GroupChange, ...] = ()
    frozen: tuple[FrozenGroup, ...] = ()
    sparse: tuple[SparseParameter, ...] = ()
    stored: tuple[StoredParameter, ...] = ()
    passes: tuple[PassRun, ...] = ()
    checks: tuple[Check, ...] = ()
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    probed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dynamic: tuple[Mapping[int, str], ...] = ()
    static: str | None = None
    training: tuple[str, ...] = ()
    ranges: Mapping[str, str] = field(default_factory=dict)
    relations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if taken := self.sizes.keys() & _FIELDS:
            raise FxCompressError(
                f"a quantity is called {min(taken)!r}, which is another part of a report; register "
                "it under another name"
            )

    @property
    def params(self) -> Change:
        """Numbers in parameters."""
        return self.sizes["params"]

    @property
    def flops(self) -> Change:
        """Floating-point operations at the example inputs."""
        return self.sizes["flops"]

    @property
    def macs(self) -> Change:
        """Multiply-accumulate operations at the example inputs."""
        return self.sizes["macs"]

    @property
    def bytes(self) -> Change:
        """Bytes of parameters and buffers."""
        return self.sizes["bytes"]

    @property
    def verification(self) -> Check | None:
        """The check that came closest to its tolerance, or beyond; None if nothing was verified."""
        return max(self.checks, key=_tightness) if self.checks else None

    def to_dict(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and numbers.

        Each quantity has a key of its own. ``verification`` is the check that came closest to its
        tolerance, ``checks`` are all.
        """
        own: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        data = {"model": own.pop("model"), **own.pop("sizes"), **own}
        worst = self.verification or Check("none", None, None, ok=False)
        data["verification"] = {
            "kind": worst.kind,
            "max_relative_error": worst.max_relative_error,
            "zeroed_error": worst.zeroed_error,
            "tolerance": worst.tolerance,
            "ok": worst.ok if self.checks else None,
        }
        return data

    @classmethod
    @checked(LoadError)
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The report that `to_dict` came from.

        Raises:
            LoadError: The data are not a report's.
        """
        from pydantic import TypeAdapter  # slow to import

        try:
            own = {name: value for name, value in data.items() if name != "verification"}
            sizes = {name: own[name] for name in (*BUILT_IN, *own) if name not in _FIELDS}
            rest = {name: own[name] for name in own.keys() - sizes.keys()}
            text = json.dumps({**rest, "sizes": sizes})
            return TypeAdapter(cls).validate_json(text, strict=True, extra="forbid")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise LoadError(
                f"these data are not a report ({type(error).__name__}: {str(error)[:300]}); "
                "give what Report.to_dict() returned"
            ) from error

    @checked(FxCompressError)
    def to_json(self, indent: Annotated[int, Interval("[0, 100]")] | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    @checked(FxCompressError)
    def to_html(self, path: FilePath) -> Path:
        """Write one self-contained page, the tables and a chart of widths; give the path back."""
        from fxcompress.report.page import write_page  # jinja2 and matplotlib are slow to import

        return write_page(self, Path(path))

    def __str__(self) -> str:
        from fxcompress.report.text import as_text  # as is rich

        return as_text(self)

    def __rich__(self) -> RenderableType:
        from fxcompress.report.text import render

        return render(self)


def resized(report: Report, cost: Cost) -> Report:
    """The report with what the program has of each quantity now. One that was registered since has
    its first row here.
    """
    sizes = {
        name: replace(report.sizes.get(name, Change(now)), after=now)
        for name, now in cost.amounts.items()
    }
    return replace(report, sizes=sizes)


_FIELDS = {each.name for each in fields(Report)}


def _tightness(check: Check) -> tuple[bool, float]:
    if check.max_relative_error is None or not check.tolerance:
        return not check.ok, 0.0
    worst = max(check.max_relative_error, check.zeroed_error or 0.0)
    return not check.ok, worst / check.tolerance
