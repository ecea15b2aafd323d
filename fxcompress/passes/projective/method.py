"""The method's options, and what it answers for one group after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import NotNegative
from fxcompress.edit.plan import Edit, Project
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import read_tensor
from fxcompress.passes.elimination import Elimination, Rescoring, Vectors, eliminate
from fxcompress.passes.projective.pairs import Pairs, pairs_of
from fxcompress.passes.projective.refusals import stays_whole
from fxcompress.passes.projective.rewrites import Rewrites, compensate, redistribute
from fxcompress.passes.projective.vectors import mean_of_scores, reader_norms, vectors_of
from fxcompress.passes.structured.method import Criterion, Reconstruction, Structured
from fxcompress.program import Program

Reconstruct = Literal["redistribute", "linear", "none"]


@dataclass(frozen=True, kw_only=True, repr=False)
class ProjectivePruning(Structured, Reconstruction, alias="Projective"):
    """Remove the units whose weights the others reproduce best, and give their part back to them.

    With w_i the weights of unit i and A the units left, each step solves ("Projective Pruning",
    equations 4 to 8)::

        q = argmin ‖Σ_j q_j w_j - w_i‖² + λ‖q‖²  over A without i      d_i = ‖Σ_j q_j w_j - w_i‖

    removes the unit with the smallest d, and multiplies what the others have by 1 + φ q_j: their
    weights (φ = alpha), their biases (beta), and the weights that read them (gamma).

    Where a BatchNorm reads the layer, its scale and shift are multiplied instead, so that the layer
    with its norm behaves as if it had no norm. The dims of attention heads are one unit in query
    and key, or in value and output: their products, which is all that matters, have the Hadamard
    product of both Gram matrices. There giving back is exact, so all of it goes to the query (or
    value) rows, whatever alpha is. Depthwise layers only follow. Gated units get back their part in
    what reads them alone.

    Attributes:
        lam: The ridge λ; zero only where the units of every group are independent.
        relative: Whether `lam` is a share of the mean squared length of a group's units.
        alpha: Share given back to the weights of the units left.
        beta: Share given back to their biases.
        gamma: Share given back to the weights that read them.
        rescoring: What scores follow: see `fxcompress.passes.elimination.eliminate`.
        aggregate: A group with several layers: ``concat`` takes their weights side by side, each
            scaled to the same mean length; ``mean_of_scores`` averages the distances in every
            layer before and after and the scales of norms, without reconstruction, as the published
            tables do.
        rows: ``raw`` weights as stored, or ``effective``: with the norm folded in, and the bias.
        reconstruction: ``redistribute`` as above; ``linear`` adds V_i q_j to the weights V_j that
            read the units left; ``none``.
        kernel: ``arccos`` compares ReLU(w·x + b) for normally distributed x in place of the
            weights, and weighs distances by the weights that read them: for groups whose only
            nonlinearity is a ReLU, with ``linear``.
        safe: Clip the factors of rows to [0.05, 4].
        attention: ``joint`` as above, or ``concat``: query and key side by side.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    lam: NotNegative = 1e-3
    relative: bool = False
    alpha: float = 0.5
    beta: float = 0.5
    gamma: float = 0.5
    rescoring: Rescoring = "scaled"
    aggregate: Literal["concat", "mean_of_scores"] = "concat"
    rows: Literal["raw", "effective"] = "raw"
    reconstruction: Reconstruct = "redistribute"
    kernel: Literal["arccos"] | None = None
    safe: bool = False
    attention: Literal["joint", "concat"] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregate == "mean_of_scores" and self.reconstruction != "none":
            raise PlanError(
                "aggregate='mean_of_scores' averages distances and has no coefficients to "
                "reconstruct with; give reconstruction='none'"
            )
        if self.kernel and self.reconstruction == "redistribute":
            raise PlanError(
                "kernel='arccos' has coefficients of functions, not of weights; give "
                "reconstruction='linear' or 'none'"
            )

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        joint = self.attention == "joint" and not self.kernel
        return stays_whole(program, group, self.reconstruction, joint, self.kernel)

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Prepared:
        """What answers for groups one after another."""
        return Prepared(self)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return Prepared(self).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return Prepared(self).edits(program, group, kept)


@dataclass(eq=False)
class Prepared(Criterion, Reconstruction):
    """`ProjectivePruning` in one plan. It remembers the eliminations of the last group it scored:
    those of all would take as much memory as the model.
    """

    options: ProjectivePruning
    notes: list[str] = field(default_factory=list)
    last: tuple[ChannelGroup, list[Elimination]] | None = None

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        if self.options.aggregate == "mean_of_scores":
            return mean_of_scores(program, group, self.options.lam, self.options.relative)
        if not _finite(program, group):
            return torch.full((group.cells, group.units), torch.nan)  # the pass tells which
        found = self._eliminations(program, group)
        self.last = group, found
        return torch.stack([each.importance for each in found])

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        project = Project(group, kept)
        if self.options.reconstruction == "none":
            return (project,)
        found = self._of(program, group, kept.expand(group.cells, -1))
        steps = group.units - kept.shape[-1]
        rewrites = Rewrites(program, group)
        pairs = self._pairs(program, group)
        if pairs is not None:
            share = self._factors(group, found, steps, 1.0)
            pairs.scale(rewrites, share)
        elif self.options.reconstruction == "linear":
            self.notes += compensate(rewrites, found, steps, self.options.kernel is None)
        else:
            shares = (self.options.alpha, self.options.beta, self.options.gamma)
            redistribute(rewrites, *(self._factors(group, found, steps, s) for s in shares))
        return (*rewrites.edits, project)

    def _factors(
        self, group: ChannelGroup, found: Sequence[Elimination], steps: int, share: float
    ) -> Tensor:
        """What each unit is multiplied by, shape (cells, units); a note where that is odd."""
        pairs = [each.factors(share, steps, self.options.safe) for each in found]
        product, clipped = torch.stack([p for p, _ in pairs]), sum(count for _, count in pairs)
        if clipped:
            self.notes.append(f"group {group.name}: {clipped} factors of units clipped")
        elif bool((product <= 0).any()):
            count = int((product <= 0).sum())
            self.notes.append(
                f"group {group.name}: {count} units changed their sign; safe=True would clip that"
            )
        return product

    def _of(self, program: Program, group: ChannelGroup, kept: Tensor) -> list[Elimination]:
        """Eliminations that leave these units, shape (cells, k)."""
        steps = group.units - kept.shape[1]
        known = self.last[1] if self.last is not None and self.last[0] is group else None
        self.last = None
        if known is None or self.options.rescoring == "oneshot":
            known = self._eliminations(program, group, steps)
        same = [
            torch.equal(own.kept(steps), cell.cpu()) for own, cell in zip(known, kept, strict=True)
        ]
        if all(same):
            return known
        gone = torch.ones(group.cells, group.units, dtype=torch.bool)
        gone.scatter_(1, kept.cpu(), False)
        return self._eliminations(program, group, steps, gone)

    def _eliminations(
        self,
        program: Program,
        group: ChannelGroup,
        steps: int | None = None,
        among: Tensor | None = None,
    ) -> list[Elimination]:
        """One for each cell."""
        options, pairs = self.options, self._pairs(program, group)
        weights = None
        if pairs is not None:
            own = [Vectors.of_gram(gram) for gram in pairs.grams()]
        else:
            own = vectors_of(program, group, options.rows, options.kernel)
            weights = reader_norms(program, group) if options.kernel else None
        return [
            eliminate(
                vectors,
                group.units - 1 if steps is None else steps,
                _ridge(vectors.gram, options.lam, options.relative),
                rescoring=options.rescoring,
                alpha=self._share(pairs),
                safe=options.safe,
                weights=None if weights is None else weights[cell],
                among=None if among is None else among[cell].to(vectors.gram.device),
            )
            for cell, vectors in enumerate(own)
        ]

    def _pairs(self, program: Program, group: ChannelGroup) -> Pairs | None:
        if self.options.attention == "concat" or self.options.kernel:
            return None
        if self.options.reconstruction == "linear" and group.kind == "vo":
            return None  # the output rows take up what is lost
        return pairs_of(program, group)

    def _share(self, pairs: Pairs | None) -> float:
        if pairs is not None and self.options.reconstruction != "none":
            return 1.0
        return self.options.alpha if self.options.reconstruction == "redistribute" else 0.0


def _finite(program: Program, group: ChannelGroup) -> bool:
    names = dict.fromkeys(site.parameter for site in group.sites)
    return all(bool(read_tensor(program.module, name).isfinite().all()) for name in names)


def _ridge(gram: Tensor, lam: float, relative: bool) -> float:
    return lam * float(gram.diagonal().mean()) if relative else lam


Projective = ProjectivePruning
"""The name it has as a criterion and a reconstruction."""
