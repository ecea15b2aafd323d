"""What a report says of parameters that edits have changed for good."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from fxcompress.edit.store import Encoded
from fxcompress.edit.zeros import Masks
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dtype_of, shape_of
from fxcompress.graph.through import module_calls
from fxcompress.report import Change, Report, SparseParameter, StoredParameter


def with_parameters(report: Report, module: CapturedModule, masks: Masks) -> Report:
    """The report with the permanent zeros and the forms that parameters have now."""
    sparse = tuple(
        SparseParameter(name, zeros.share, str(zeros.pattern or ""))
        for name, zeros in masks.items()
    )
    return replace(report, sparse=sparse, stored=_stored(module))


def _stored(module: CapturedModule) -> tuple[StoredParameter, ...]:
    found = []
    for name, (call, *_) in module_calls(module).items():
        kept = module.get_submodule(str(call.target))
        if isinstance(kept, Encoded):
            before = prod(shape_of(call)) * dtype_of(call).itemsize
            after = sum(part.nbytes for part in kept.buffers())
            found.append(StoredParameter(name, str(kept.codec), Change(before, after)))
    return tuple(found)
