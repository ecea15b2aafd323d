"""Projections of units: n become k, by selection or by matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Factor
from fxcompress.axes.transforms import Choice
from fxcompress.edit.base import Edit, Stage
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.edit.shift import offsets_of
from fxcompress.errors import PlanError


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """The n units of `group` become k.

    Attributes:
        group: The group, as the program's analysis names it.
        encode: For a selection the kept indices, int64 of shape (k,), or (cells, k) where cells
            keep units of their own. Otherwise the matrix E of shape (k, n) or (cells, k, n) for
            what produces the units.
        decode: The matrix D of shape (n, k) or (cells, n, k) for what consumes them. None selects
            there what `encode` selects; given beside indices, it lets the units that stay stand in
            for those that go.
        shift: A constant, shape (n,), that consumers see beside the decoded units: an `Offset` of
            each linear map that consumes them.
    """

    stage: ClassVar[Stage] = Stage.WIDTHS

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

    @property
    def mixes(self) -> bool:
        """Whether a matrix mixes units, for what produces or for what consumes them."""
        return not self.encoder.selects or self.decode is not None

    @property
    def target(self) -> str:
        return self.group.name

    @property
    def projects(self) -> tuple[Project, ...]:
        return (self,)

    def check(self, context: Context) -> None:
        group = self.group
        first = group.sites[0]
        held = f"axis {first.dim} of {first.parameter}"
        where = f"group {group.name} ({group.units} units, {held})"
        if group.factor not in context.coupling.roles:
            raise PlanError(
                f"{where} belongs to another program; "
                "take groups from the program that the plan is for"
            )
        if group.frozen:
            raise PlanError(f"{where} may not change: {group.frozen}")
        _check_encode(self, where)
        _check_decode(self, where)
        matrices = {"encode": self.encode, "decode": self.decode, "shift": self.shift}
        for name, value in matrices.items():
            if value is not None and not bool(torch.isfinite(value).all()):
                raise PlanError(f"{where}: {name} has entries that are not finite")
        if self.decode is not None:
            _check_tied(context.coupling, self, where)

    def apply(self, context: Context) -> None:
        """Leave the projection to the change of widths, which does all at once: a parameter may
        hold the units of several groups.
        """
        if self.shift is not None:
            for offset in offsets_of(context, self.group, self.shift):
                offset.apply(context)
        context.encoders[self.group.factor] = self.encoder
        context.decoders[self.group.factor] = self.decoder

    def proof(self, context: Context) -> Proof:
        """Units that leave are zero in the dense graph; matrices scatter the others over the places
        that stay.
        """
        shifted = () if self.shift is None else ((self.group.factor, self.shift),)
        words = "scattered units" if self.mixes else "zero-masked units"
        return Proof(
            kind="scattered" if self.mixes else "zero-masked",
            rank=50 if self.mixes else 40,
            words=(words, "constants seen by consumers") if shifted else (words,),
            rounded=self.mixes or bool(shifted),
            projects=(self,),
            shifts=shifted,
        )


def _check_encode(edit: Project, where: str) -> None:
    encode, cells, units = edit.encode, edit.group.cells, edit.group.units
    if not encode.is_floating_point() and encode.dtype != torch.int64:
        raise PlanError(f"{where}: encode holds {encode.dtype}; give indices as int64, not a mask")
    rank = 1 if edit.encoder.selects else 2
    shaped = encode.dim() == rank or (encode.dim() == rank + 1 and encode.shape[0] == cells)
    if not shaped or (rank == 2 and encode.shape[-1] != units):
        raise PlanError(
            f"{where}: encode has shape {tuple(encode.shape)}; expected indices (k,) or "
            f"({cells}, k), or a matrix (k, {units}) or ({cells}, k, {units})"
        )
    if edit.width < 1:
        raise PlanError(f"{where}: nothing would be left; keep at least one unit")
    if rank == 1:
        _check_indices(edit, where)


def _check_decode(edit: Project, where: str) -> None:
    cells, units, decode = edit.group.cells, edit.group.units, edit.decode
    allowed = {(units, edit.width), (cells, units, edit.width)}
    if decode is None and not edit.encoder.selects:
        raise PlanError(f"{where}: a matrix encode needs a decode of shape ({units}, {edit.width})")
    if decode is not None and tuple(decode.shape) not in allowed:
        raise PlanError(
            f"{where}: decode has shape {tuple(decode.shape)}; expected ({units}, {edit.width}), "
            f"or ({cells}, {units}, {edit.width}) for {cells} cells"
        )
    if edit.shift is not None and edit.shift.shape != (units,):
        raise PlanError(f"{where}: shift has shape {tuple(edit.shift.shape)}, expected ({units},)")


def _check_indices(edit: Project, where: str) -> None:
    index: Tensor = edit.encode.reshape(-1, edit.width)
    if int(index.min()) < 0 or int(index.max()) >= edit.group.units:
        raise PlanError(
            f"{where}: kept indices must be in 0…{edit.group.units - 1}, "
            f"got {int(index.min())}…{int(index.max())}"
        )
    ordered = index.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise PlanError(f"{where}: an index is kept twice; give each unit once")


def _check_tied(coupling: Coupling, edit: Project, where: str) -> None:
    """An axis that both produces and consumes the units (a tied embedding) can only take D = Eᵀ."""
    both = tied_axis(coupling, edit.group.factor)
    if both is not None and not _transposed(edit):
        raise PlanError(f"{where}: {both}, so decode must be the transpose of encode")


def tied_axis(coupling: Coupling, factor: Factor) -> str | None:
    """The axis that both writes and reads the units of a factor, in words; None without one."""
    roles: dict[tuple[str, int], set[str]] = {}
    for parameter, dim, role in sorted(coupling.roles[factor]):
        roles.setdefault((parameter, dim), set()).add(role)
    for (parameter, dim), own in roles.items():
        if "contract" in own and len(own) > 1:
            return f"axis {dim} of {parameter} both writes and reads the units"
    return None


def _transposed(edit: Project) -> bool:
    assert edit.decode is not None
    encode = edit.encode
    if edit.encoder.selects:
        encode = nn.functional.one_hot(encode, edit.group.units).to(edit.decode.dtype)
    return encode.mT.shape == edit.decode.shape and torch.allclose(encode.mT, edit.decode)
