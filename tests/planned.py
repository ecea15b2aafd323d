"""What a plan keeps."""

from __future__ import annotations

from torch import Tensor

from fxcompress.edit.plan import Plan, Project


def kept(plan: Plan) -> dict[str, Tensor]:
    return {edit.group.name: edit.encode for edit in plan.edits if isinstance(edit, Project)}
