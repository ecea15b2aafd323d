"""What an edit says for its verification: how the dense graph computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from fxcompress.axes.expressions import Factor
from fxcompress.edit.zeros import Masks

if TYPE_CHECKING:
    from fxcompress.edit.project import Project


@dataclass(frozen=True, eq=False, kw_only=True)
class Proof:
    """What the dense graph has to do so that it computes what the edited program must, and what
    the edited program's own tensors hold.

    Everything is said of the program before the plan, in its shapes. ``verify`` carries it out
    without the rewriter: parameters are read as other values, constants are added to the values of
    nodes, and units are scattered over the places of the old ones and masked.

    Attributes:
        kind: The name of the comparison in the report.
        rank: Of the edits of a plan, the one of the highest rank names the comparison.
        words: What the dense graph has, in words, such as ``"replaced values"``.
        rounded: Whether the edit mixes, adds or computes values, which then are rounded to the
            program's precision on their way. Otherwise a run in double precision must agree to
            double precision.
        finalizes: Whether the edited program is also compared with itself once finalised.
        projects: The projections of units.
        reads: What the dense graph reads in place of parameters and buffers, by name.
        holds: What parameters and buffers of the edited program hold to the last bit, but for the
            units that leave; a tensor that is not named is as it was.
        bounds: By the name of a parameter that is stored in another form: how far each entry that
            is read may be from what it was. Entries that were zero are read as exactly zero.
        constants: The name of a weight, and what is added to what its linear maps give, of shape
            (outputs,).
        shifts: A factor, and what consumers of its units see beside them, of shape (units,).
        masks: The entries that the edited program reads as zero.
    """

    kind: str = "bit-identical"
    rank: int = 0
    words: tuple[str, ...] = ()
    rounded: bool = False
    finalizes: bool = False
    projects: tuple[Project, ...] = ()
    reads: Mapping[str, Tensor] = field(default_factory=dict)
    holds: Mapping[str, Tensor] = field(default_factory=dict)
    bounds: Mapping[str, Tensor] = field(default_factory=dict)
    constants: tuple[tuple[str, Tensor], ...] = ()
    shifts: tuple[tuple[Factor, Tensor], ...] = ()
    masks: Masks = field(default_factory=dict)


def joined(proofs: Sequence[Proof]) -> Proof:
    """The proof of a plan, from those of its edits in their order."""
    first = max(proofs, key=lambda proof: proof.rank, default=Proof())
    return Proof(
        kind=first.kind,
        rank=first.rank,
        words=tuple(words for proof in proofs for words in proof.words),
        rounded=any(proof.rounded for proof in proofs),
        finalizes=any(proof.finalizes for proof in proofs),
        projects=tuple(one for proof in proofs for one in proof.projects),
        reads={name: value for proof in proofs for name, value in proof.reads.items()},
        holds={name: value for proof in proofs for name, value in proof.holds.items()},
        bounds={name: value for proof in proofs for name, value in proof.bounds.items()},
        constants=tuple(one for proof in proofs for one in proof.constants),
        shifts=tuple(one for proof in proofs for one in proof.shifts),
        masks={name: zeros for proof in proofs for name, zeros in proof.masks.items()},
    )
