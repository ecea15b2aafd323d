"""The rewriter: the only place that edits a captured graph.

It applies a `Plan` to a copy of the module: edits apply themselves, then all widths change at once.
What a plan does not touch is shared with the module it came from.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.analysis.coupling import Coupling
from fxcompress.canonicalize.norms import absorb_neutral_norms
from fxcompress.edit.check import check_plan
from fxcompress.edit.context import Context
from fxcompress.edit.plan import Plan
from fxcompress.edit.widths import Kept, change_widths
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.check import check


@dataclass(frozen=True)
class Rewritten:
    """A module after a plan.

    Attributes:
        module: The new module.
        kept: For parameters and buffers of which units were only selected, the places that stayed
            on each axis (None: all).
        mixed: Parameters and buffers of which units were mixed by a matrix.
    """

    module: CapturedModule
    kept: Kept
    mixed: frozenset[str]


def rewrite(module: CapturedModule, coupling: Coupling, plan: Plan) -> Rewritten:
    """Apply `plan` to a copy of `module`.

    Raises:
        PlanError: The plan would break the program; the message names the group or parameter, the
            site and the reason.
    """
    check_plan(Context(module, coupling), plan)
    context = Context(clone_graph(module, compiled=False), coupling, module)
    for edit in sorted(plan.edits, key=lambda edit: edit.stage):
        edit.apply(context)
    kept, mixed = change_widths(context)
    absorb_neutral_norms(context.module, context.replaced)
    check(context.module, "edited")
    context.module.recompile()
    return Rewritten(context.module, kept, mixed)
