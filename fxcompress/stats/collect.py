"""Statistics over data: in one forward pass, or layer by layer beside a compressed version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from fxcompress.arguments import Count, checked
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.program import Program
from fxcompress.stats.observe import check_nodes, observe
from fxcompress.stats.walk import Walk, Wanted

Order = Literal["once", "layers"]
Compress = Callable[[Sequence[Wanted]], CapturedModule | None]
"""What to do when the statistics of one node are complete: the version of the program from now on,
with the same nodes by name, or None where it stays.
"""


@checked(PlanError)
def collect(
    program: Program,
    wanted: Iterable[Wanted],
    order: Order = "once",
    *,
    compress: Compress | None = None,
    who: str = "calibration",
    samples: Count | None = None,
) -> int:
    """Update statistics over the program's data.

    Args:
        program: Run in evaluation mode on its task's data; it is not changed.
        wanted: Statistics of the values of nodes.
        order: ``once``: one forward pass, batch by batch, keeping nothing. ``layers``: the graph is
            cut before what reads the values that are wanted; each stage is run once on all batches,
            and `compress` is called with what is complete after it. Paired statistics then see the
            program beside the version that `compress` gave last, each run once in total. What is
            kept are activations at one boundary, of all batches.
        compress: With ``layers``, what becomes of the program after each stage.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Returns:
        How many samples were run.

    Raises:
        PlanError: As `observe`; or pairs or `compress` are asked for in one pass.
    """
    own = list(wanted)
    check_nodes(program, {one.value for one in own}, who)
    if order == "once":
        return _once(program, own, compress, who, samples)
    walk = Walk(program, {one.value for one in own}, who=who, samples=samples)
    module: CapturedModule | None = None
    for stage in _stages(program, own):
        walk.see(stage, module)
        changed = None if compress is None else compress(stage)
        module = module if changed is None else changed
    return walk.samples


def _once(
    program: Program,
    wanted: Sequence[Wanted],
    compress: Compress | None,
    who: str,
    samples: int | None,
) -> int:
    if compress is not None or any(one.paired for one in wanted):
        raise PlanError(
            f"{who}: order='once' sees the program alone, so it takes no paired statistics and no "
            "compress=; give order='layers'"
        )
    by_node: dict[str, list[Wanted]] = {}
    for one in wanted:
        by_node.setdefault(one.value, []).append(one)

    def updated(own: list[Wanted]) -> Callable[..., None]:
        def tap(value: object) -> None:
            for one in own:
                one.statistic.update(value)

        return tap

    taps = {name: updated(own) for name, own in by_node.items()}
    return observe(program, taps, who=who, samples=samples)


def _stages(program: Program, wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """What is wanted of each node, in the order of the graph."""
    names = [node.name for node in program.module.graph.nodes]
    found = ([one for one in wanted if one.value == name] for name in names)
    return [stage for stage in found if stage]
