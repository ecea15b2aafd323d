"""Why a model cannot be captured, in words: torch's reason, the user's line, what to try."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fxcompress.capture.inputs import DynamicSpec, describe
from fxcompress.errors import CaptureError

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_REASON_LINES = 4

_ADVICE = (
    (
        ("data-dependent", "data dependent", "GuardOnDataDependent", "Dynamic control flow"),
        "the forward decides by a tensor's value: use torch.where or torch.cond there, or fix the choice beforehand",
    ),
    (
        ("pytree", "register_dataclass", "unsupported type", "Unsupported input type"),
        "register the class with torch.export.register_dataclass, or let the forward take and return "
        "tensors, lists and dicts",
    ),
    (
        ("Constraints violated", "specialized", "dynamic_shapes", "dynamic shape"),
        "ask for fewer free axes: dynamic='batch', or dynamic=None to fix every size",
    ),
)
_DEFAULT_ADVICE = (
    "check that model(*args, **kwargs) runs, then make torch.export.export(model, args, kwargs, strict=False) pass; "
    "if only a part of the model resists, compress the modules around it one by one"
)


def explain_refusal(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: DynamicSpec,
    error: Exception,
) -> str:
    """The message for a model that torch.export refused."""
    mismatch = next(_mismatches(model, args, kwargs), None)
    reason = _reason(error)
    lines = [
        f"torch.export refused {type(model).__name__} with inputs ({describe(args, kwargs)}).",
        f"  reason: {reason}",
        *(f"  at: {line}" for line in _user_lines(error)),
        f"  try: {mismatch or _advice(f'{type(error).__name__} {error}')}",
    ]
    return "\n".join(lines)


def refuse_bad_weights(program: ExportedProgram) -> None:
    """Raise if a weight is not finite: nothing computed from it could be checked."""
    parameters = set(program.graph_signature.parameters)
    for name, value in program.state_dict.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()) or value.is_meta:
            continue
        # A buffer may hold minus infinity on purpose, as attention masks do.
        bad = ~torch.isfinite(value) if name in parameters else torch.isnan(value)
        count = int(bad.sum())
        if count:
            raise CaptureError(
                f"{name} {list(value.shape)} holds {count} value(s) that are NaN or infinite; "
                "load a sound checkpoint, no pass can be verified on this one"
            )


def refuse_uninitialized(model: nn.Module) -> None:
    """Raise if a lazy module has not seen its first input yet."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise CaptureError(
                f"{name} has no shape yet: it belongs to a lazy module; run the model once before capturing it"
            )


def _mismatches(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """Devices and dtypes in which the inputs differ from the parameters, if the parameters agree among themselves."""
    inputs = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    parameters = list(model.parameters())
    devices = {value.device for value in parameters}
    dtypes = {value.dtype for value in parameters if value.is_floating_point()}
    for value in inputs:
        if len(devices) == 1 and value.device not in devices and value.ndim:
            device = devices.pop()
            yield f"an input is on {value.device}, the parameters are on {device}: move one of them"
            return
    for value in inputs:
        if len(dtypes) == 1 and value.is_floating_point() and value.dtype not in dtypes:
            dtype = dtypes.pop()
            yield f"an input is {value.dtype}, the parameters are {dtype}: convert one of them"
            return


def _reason(error: BaseException) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = text[:_REASON_LINES] or [type(error).__name__]
    return f"{type(error).__name__}: " + "\n          ".join(kept)


def _user_lines(error: BaseException) -> Iterator[str]:
    """The innermost line of the traceback that lies outside torch and this package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARIES) and Path(frame.filename).is_file():
            yield f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
            return


def _advice(text: str) -> str:
    for words, advice in _ADVICE:
        if any(word in text for word in words):
            return advice
    return _DEFAULT_ADVICE
