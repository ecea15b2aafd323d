"""Tune norms: train the scales and shifts of LayerNorm, RMSNorm and GroupNorm, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from fxcompress.arguments import Count, Positive, Seed
from fxcompress.budget import Recipe
from fxcompress.edit.plan import Plan, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.norms import input_norms
from fxcompress.graph.parameters import find_tensor, tensor_called
from fxcompress.program import Program
from fxcompress.stats import require_data
from fxcompress.train import Trainer


@dataclass(frozen=True, kw_only=True, repr=False)
class TuneNorms(Recipe):
    """Let the norms make up for what a compression did to the scale of their inputs.

    One epoch of the few parameters of norms costs no more memory than inference and little time; it
    is to nets with LayerNorm what recalibration is to those with BatchNorm (Cut Less, Fold More:
    AdamW, rate 1e-4, one pass over the data).

    Attributes:
        epochs: Passes over the task's data.
        lr: The learning rate.
        seed: For dropout; None takes the seed of the program.
    """

    epochs: Count = 1
    lr: Positive = 1e-4
    seed: Seed | None = None

    def plan(self, program: Program) -> Plan:
        """Train a copy.

        Raises:
            PlanError: The program has no data, labels or loss, or no such norm.
            FxCompressError: The loss hangs on no such norm, or training diverged.
        """
        task = require_data(program, "TuneNorms", labels=True)
        module = copy.deepcopy(program.module)
        names = list(dict.fromkeys(_parameters(module)))
        if not names:
            raise PlanError(
                "TuneNorms: the program has no LayerNorm, RMSNorm or GroupNorm with parameters; "
                "for BatchNorm use RecalibrateBatchNorm"
            )
        module.requires_grad_(False)
        for name in names:
            value = tensor_called(module, name)
            value.requires_grad_(True)
        losses = self._trainer(program).fit(module, task)
        found = {name: find_tensor(module, name) for name in names}
        edits = [Replace(name, v.detach()) for name, v in found.items() if v is not None]
        return Plan(
            tuple(edits), (f"{len(names)} parameters of norms tuned: loss {losses[-1]:.4g}",)
        )

    def _trainer(self, program: Program) -> Trainer:
        return Trainer(
            epochs=self.epochs,
            lr=self.lr,
            optimizer="adamw",
            weight_decay=0.0,
            schedule="constant",
            seed=program.seed if self.seed is None else self.seed,
        )


def _parameters(module: CapturedModule) -> Iterator[str]:
    """The scales and shifts of norms that are parameters, by the name the graph reads them by."""
    known = dict(module.named_parameters(remove_duplicate=False))
    for norm in input_norms(module):
        for name in (norm.scale, norm.shift):
            if name is not None and name in known:
                yield name
