"""Which original indices stay over several plans."""

from __future__ import annotations

from torch import Tensor

from fxcompress.edit.widths import Kept
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import names_of


def kept_after(module: CapturedModule, before: Kept, now: Kept, mixed: frozenset[str]) -> Kept:
    """Original indices after one more selection, which picks among what was left before it.

    Args:
        module: After the plan; what stayed stands under every name that its tensors have.
        before: Original indices that were left before the plan.
        now: Indices into these that the plan left.
        mixed: What a matrix has mixed, by this plan or one before: it has no original indices.
    """
    kept = dict(before)
    for name, axes in now.items():
        earlier = before.get(name, (None,) * len(axes))
        kept[name] = tuple(_then(a, b) for a, b in zip(earlier, axes, strict=True))
    names = names_of(module)
    return {
        other: axes
        for name, axes in kept.items()
        if name in names and name not in mixed
        for other in sorted(names[name])
    }


def _then(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first[second]
