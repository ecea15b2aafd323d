"""Permanent zeros over a plan: what stays masked, and in what pattern.

A pass that removes units cuts the masks along. Where a pattern (2 of every 4 inputs, say) does not
outlive the cut, or values are mixed so that zeros fill up, what was lost is told.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fxcompress.edit.plan import Plan
from fxcompress.edit.rewrite import Rewritten
from fxcompress.edit.zeros import Masking as Masking
from fxcompress.edit.zeros import Masks as Masks
from fxcompress.edit.zeros import Zeros as Zeros
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.through import modules_read, read_value

_NAMED = 5


def masks_after(known: Masks, plan: Plan, done: Rewritten) -> tuple[dict[str, Zeros], list[str]]:
    """The masks after a plan, and notes on what it has broken.

    Args:
        known: The masks of the program before.
        plan: What was done.
        done: What came of it.
    """
    found: dict[str, Zeros] = {}
    filled, broken = [], []
    for name, zeros in current_masks(done.module, {**known, **plan.masks}).items():
        value = read_value(done.module, name)
        if value is None:
            continue
        mask = _cut(zeros.mask, done.kept.get(name, ()))
        if mask.shape != value.shape or bool(value.detach()[~mask.to(value.device)].any()):
            filled.append(name)
            continue
        pattern = zeros.pattern if zeros.pattern and zeros.pattern.holds(mask) else None
        if pattern != zeros.pattern:
            broken.append(f"{name} ({zeros.pattern})")
        found[name] = Zeros(mask, pattern)
    return found, [
        *_notes(broken, "keep their zeros but lose the pattern"),
        *_notes(filled, "lose their zeros"),
    ]


def current_masks(module: CapturedModule, known: Masks) -> dict[str, Zeros]:
    """The masks known, and those that modules have by now through which parameters are read."""
    found = dict(known)
    for name, child in modules_read(module).items():
        if isinstance(child, Masking):
            mask, pattern = child.zeros()
            found[name] = Zeros(mask.detach().bool(), pattern)
    return found


def _cut(mask: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    for dim, index in enumerate(kept):
        if index is not None:
            mask = mask.index_select(dim, index.to(mask.device))
    return mask


def _notes(names: list[str], what: str) -> Iterator[str]:
    if names:
        shown = ", ".join(names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{len(names)} sparse parameters {what}: {shown}{more}; make weights sparse last"
