"""Values of chosen nodes, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxcompress.arguments import Count, checked
from fxcompress.errors import PlanError
from fxcompress.graph.state import copies, forked
from fxcompress.program import Program
from fxcompress.stats.batching import FEW, batching_of, cut
from fxcompress.stats.data import require_data, samples_of
from fxcompress.stats.running import runner, tensors_of
from fxcompress.train.batches import call
from fxcompress.verify import distance

REPEATS = 1e-3
"""Two runs on one batch agree to this share of the largest output; far above rounding."""


@checked(PlanError)
def observe(
    program: Program,
    taps: Mapping[str, Callable[[Tensor], None]],
    *,
    who: str = "calibration",
    samples: Count | None = None,
) -> int:
    """Run the program on its data without gradients and hand values of nodes to `taps`.

    Args:
        program: Run in evaluation mode on its task's data; it is not changed.
        taps: What to do with the value of a node, by the node's name. The value is freed after,
            and may be overwritten by a later node: what is to be kept must be copied.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Returns:
        How many samples were run.

    Raises:
        PlanError: There are no data, they cannot be read again or to their end, the program gives
            another output for the same batch, or it has no such node.
    """
    task = require_data(program, who)
    check_nodes(program, taps, who)
    module = runner(
        program.module, lambda n, value: taps[n.name](value) if n.name in taps else None
    )
    seen = 0
    with torch.no_grad(), forked(module):
        for inputs, _, size in samples_of(program, who, limit=samples):
            if not seen:
                check_repeats(program, inputs, who)
            call(module, task, inputs)
            seen += size
    return seen


def check_nodes(program: Program, names: Iterable[str], who: str) -> None:
    """Refuse names of nodes that the graph does not have.

    Raises:
        PlanError: With the names.
    """
    missing = sorted(set(names) - {node.name for node in program.module.graph.nodes})
    if missing:
        raise PlanError(
            f"{who} asks for the values of {', '.join(missing)}, which are no nodes of the program;"
            " take the names from program.module.graph"
        )


def check_repeats(program: Program, inputs: Any, who: str) -> None:
    """Refuse a program that gives another output for the same samples, the first of a batch.

    Raises:
        PlanError: It does.
    """
    task = require_data(program, who)
    module = runner(program.module)
    few = cut(program, inputs, 0, FEW) if batching_of(program, inputs).cuttable else inputs
    first, second = (tensors_of(call(module, task, copies(few))) for _ in range(2))
    gap, _ = distance(second, first)
    if not gap <= REPEATS:
        raise PlanError(
            f"{who}: two runs on the same batch differ by {gap:.2g} (relative), so what it finds "
            "would be chance; take the randomness out of the model, or seed it in Task(forward=...)"
        )
