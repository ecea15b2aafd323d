"""Rewrite a captured graph so that fewer spellings of the same thing have to be known further on.

Each rewrite is one function that edits the module and says how often it applied; none changes a
single bit of the output. They run once, in the order of `REWRITES`.
"""

from __future__ import annotations

from collections.abc import Callable

from fxcompress.ambient import sealed
from fxcompress.canonicalize.constants import fold_constants
from fxcompress.canonicalize.fused import separate_fused_axes
from fxcompress.canonicalize.order import sink_parameters
from fxcompress.canonicalize.ranges import separate_fused_ranges, spell_out_ranges
from fxcompress.canonicalize.spelling import (
    drop_aliases,
    pin_attention_scale,
    spell_out_integer_rsub,
    spell_out_splits,
    spell_out_squeezes,
)
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.check import check

__all__ = ["REWRITES", "Rewrite", "canonicalize"]

Rewrite = Callable[[CapturedModule], int]

REWRITES: tuple[Rewrite, ...] = (
    drop_aliases,
    fold_constants,
    spell_out_splits,
    spell_out_squeezes,
    spell_out_ranges,
    separate_fused_axes,
    separate_fused_ranges,
    spell_out_integer_rsub,
    pin_attention_scale,
    sink_parameters,
)


@sealed
def canonicalize(module: CapturedModule) -> CapturedModule:
    """Apply every rewrite to a copy of the graph; the tensors are shared with the module given."""
    result = clone_graph(module, compiled=False)
    for rewrite in REWRITES:
        _apply(rewrite, result)
    check(result, "canonical")
    result.recompile()
    return result


def apply(rewrite: Rewrite, module: CapturedModule) -> int:
    """Apply one rewrite in place and leave the module ready to run; say how often it applied."""
    count = _apply(rewrite, module)
    if count:
        module.graph.lint()
        module.recompile()
    return count


def _apply(rewrite: Rewrite, module: CapturedModule) -> int:
    count = rewrite(module)
    if count:
        module.graph.eliminate_dead_code()
    return count
