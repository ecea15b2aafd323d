"""The importance classes of torch-pruning, on our groups: baselines whose numbers are its own.

Wherever its code departs from the formula it is named after, what comes out is what its code says:
FPGM measures distances between squared weights, Taylor leaves BatchNorm out, and of the samples
that Hessian is shown only the last one counts. What these are meant to be are passes of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count
from fxcompress.errors import PlanError
from fxcompress.passes.structured.method import Criterion, DeclinedError, Structured
from fxcompress.passes.torch_pruning.groups import Presented, present
from fxcompress.program import Program
from fxcompress.stats import Gradients, gradients
from fxcompress.stats.data import parts_of, samples_of

Importance = Literal[
    "MagnitudeImportance",
    "FPGMImportance",
    "LAMPImportance",
    "BNScaleImportance",
    "TaylorImportance",
    "HessianImportance",
    "OBDCImportance",
    "RandomImportance",
]


def library() -> Any:
    """The module ``torch_pruning``.

    Raises:
        PlanError: It is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise PlanError(
            "the importances of torch-pruning need that library: pip install torch-pruning"
        ) from error
    return torch_pruning


@dataclass(frozen=True, kw_only=True, repr=False)
class TorchPruningPass(Structured, alias="TorchPruning"):
    """Keep the units that one of torch-pruning's importance classes ranks highest.

    Groups, widths and the removal are ours; only the scores are that library's. Its sums are in
    float32. Gradients, where it wants some, are those of the task's loss.

    Attributes:
        importance: The name of the class in ``torch_pruning.importance``.
        options: Its arguments, such as ``{"p": 1, "group_reduction": "first"}``.
        samples: How many samples it sees at most, where it wants gradients.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    importance: Importance = "MagnitudeImportance"
    options: Mapping[str, Any] | None = None
    samples: Count | None = None

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> _Prepared:
        """Present all groups, with gradients where the class wants some."""
        tp = library()
        scorer = getattr(tp.importance, self.importance)(**(self.options or {}))
        presented = {group: present(tp, program, group) for group in groups}
        if self.importance in _FEEDERS:
            _FEEDERS[self.importance](_Data(program, self.importance, self.samples), scorer,
                                      presented.values())  # fmt: skip
        return _Prepared(self, scorer, presented)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)


@dataclass(frozen=True, eq=False)
class _Prepared(Criterion):
    recipe: TorchPruningPass
    scorer: Any
    presented: Mapping[ChannelGroup, Presented]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(_seed(program, group))  # RandomImportance draws
            score: Tensor | None = self.scorer(self.presented[group].group)
        if score is None:
            raise DeclinedError(
                group, f"torch-pruning's {self.recipe.importance} scores none of its layers"
            )
        return score.detach().to(torch.float64).reshape(group.cells, group.units)


def _seed(program: Program, group: ChannelGroup) -> int:
    digest = hashlib.sha256(f"{program.seed} {group.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# ---- classes that want gradients


@dataclass(frozen=True, eq=False)
class _Data:
    program: Program
    who: str
    samples: int | None

    def mean(self, names: Collection[str], squares: bool = False) -> Gradients:
        """Mean gradients over the data."""
        return gradients(self.program, names, squares=squares, who=self.who, samples=self.samples)

    def each(self, names: Collection[str]) -> Iterator[Mapping[str, Tensor]]:
        """The gradient of every sample's loss, one after the other."""
        task = self.program.task
        for inputs, labels, size in samples_of(self.program, self.who, True, self.samples):
            assert task is not None
            for one in parts_of(self.program, self.who, inputs, labels, size, 1):
                alone = replace(self.program, task=replace(task, data=[one]))
                yield gradients(alone, names, who=self.who).mean


def _names(presented: Collection[Presented]) -> list[str]:
    return sorted({name for each in presented for _, name, _ in each.sources})


def _feed_taylor(data: _Data, scorer: Any, presented: Collection[Presented]) -> None:
    mean = data.mean(_names(presented)).mean
    for each in presented:
        each.set_gradients(mean)


def _feed_hessian(data: _Data, scorer: Any, presented: Collection[Presented]) -> None:
    """Show it every sample, as its documentation says."""
    everything = nn.ModuleList(layer for each in presented for layer in each.layers)
    for gradient in data.each(_names(presented)):
        for each in presented:
            each.set_gradients(gradient)
        scorer.accumulate_grad(everything)


def _feed_obdc(data: _Data, scorer: Any, presented: Collection[Presented]) -> None:
    """Fill in what its hooks would have summed had every sample been a step of its own."""
    found = data.mean(_names(presented), squares=True)
    scorer.steps = 1
    for each in presented:
        each.set_gradients(found.mean)
        for parameter, name, arrange in each.sources:
            for layer in each.layers:
                if layer.weight is parameter and parameter.dim() > 1:
                    scorer.Fisher[layer] = arrange(found.square[name]).flatten(1)


_FEEDERS = {
    "TaylorImportance": _feed_taylor,
    "HessianImportance": _feed_hessian,
    "OBDCImportance": _feed_obdc,
}


TorchPruning = TorchPruningPass
"""The name it has as a criterion."""
