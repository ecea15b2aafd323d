"""Zeros that are for good: which entries of a parameter a pass has masked, and in what pattern.

A pass that removes units cuts the masks along. Where a pattern (2 of every 4 inputs, say) does not
outlive the cut, or values are mixed so that zeros fill up, what was lost is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxcompress.edit.plan import Masking, Pattern, Plan, Replace
from fxcompress.edit.rewrite import Rewritten
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor

_NAMED = 5


@dataclass(frozen=True, eq=False)
class Zeros:
    """What is zero for good in a parameter.

    Attributes:
        mask: True where an entry may be non-zero, of the parameter's shape.
        pattern: What the mask adheres to, if to anything.
    """

    mask: Tensor
    pattern: Pattern | None = None

    @property
    def share(self) -> float:
        """The share of entries that are zero for good."""
        return 1 - float(self.mask.double().mean())


Masks = Mapping[str, Zeros]


def masks_after(known: Masks, plan: Plan, done: Rewritten) -> tuple[dict[str, Zeros], list[str]]:
    """The masks after a plan, and notes on what it has broken.

    Args:
        known: The masks of the program before.
        plan: What was done.
        done: What came of it.
    """
    new = {
        edit.parameter: Zeros(edit.mask, edit.pattern)
        for edit in plan.edits
        if isinstance(edit, Replace) and edit.mask is not None
    }
    found: dict[str, Zeros] = {}
    filled, broken = [], []
    for name, zeros in current_masks(done.module, {**known, **new}).items():
        value = _read_value(done.module, name)
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
    """The masks known, and those of the modules through which parameters are read now."""
    found = dict(known)
    for name, child in _readers(module).items():
        if isinstance(child, Masking):
            mask, pattern = child.zeros()
            found[name] = Zeros(mask.detach().bool(), pattern)
    return found


def _readers(module: CapturedModule) -> dict[str, nn.Module]:
    """The small module through which each reparametrised parameter is read."""
    found = {}
    for node in module.graph.find_nodes(op="call_module"):
        name = parameter_of(node.args[0]) if node.args else None
        if name is not None:
            found[name] = module.get_submodule(str(node.target))
    return found


def _read_value(module: CapturedModule, name: str) -> Tensor | None:
    """What the graph reads as this parameter, if there is one."""
    value, through = find_tensor(module, name), _readers(module).get(name)
    if value is None or through is None:
        return value
    with torch.no_grad():
        return through(value)  # type: ignore[no-any-return]


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
