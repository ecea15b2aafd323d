"""Why a model cannot be captured, in words: torch's reason, the user's line, what to try."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from fxcompress.capture.inputs import Inputs, describe, named_tensors
from fxcompress.errors import CaptureError
from fxcompress.graph.lazy import READ_LAZILY
from fxcompress.graph.lazy import is_lazy as has_lazy_values

_LIBRARIES = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))
_REASON_LINES = 2
_HINTS_FOR_TORCH = (
    "For ",
    "If you",
    "The error above",
    "consider using",
    "Caused by",
    "User Stack",
)
"""How lines begin that are about torch's own logs and options."""
_OPTIONS_OF_TORCH = re.compile(r" (For more information, run with|If you're using) .*")
"""Ends of lines about the same."""

_ADVICE = (
    (
        ("data-dependent", "data dependent", "DataDependent", "control flow"),
        "the forward decides by a tensor's value: write torch.where or torch.cond there, "
        "or decide before the model is captured",
    ),
    (
        ("pytree", "register_dataclass", "unsupported type", "Unsupported input type"),
        "register the class with torch.export.register_dataclass, or take and return tensors, "
        "lists and dicts",
    ),
    (
        ("Constraints violated", "specialized", "dynamic_shapes", "dynamic shape"),
        "ask for fewer free axes: dynamic='batch', or dynamic=None to fix every size; or give "
        "an example of a size from which the forward does as for others",
    ),
    (
        ("UnsupportedOperatorException",),
        "torch knows no shapes for this operator at free sizes: register them with "
        "torch.library.register_fake, or fix every size with dynamic=None",
    ),
)
_DEFAULT_ADVICE = (
    "see that model(*args, **kwargs) runs and that torch.export.export(model, args, kwargs) "
    "passes; if only one part of the model resists, compress the others one by one"
)


def explain_refusal(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    """The message for a model that torch.export refused."""
    advice = mismatch(model, inputs) or _advice(f"{type(error).__name__} {error}")
    lines = [
        f"torch.export refused {type(model).__name__} with inputs ({describe(inputs)}).",
        f"  reason: {_reason(error)}",
        *(f"  at: {line}" for line in _user_lines(error)),
        f"  try: {advice}",
    ]
    return "\n".join(lines)


def refuse_bad_weights(program: ExportedProgram) -> None:
    """Raise if a weight is not finite: nothing computed from it could be checked."""
    parameters = set(program.graph_signature.parameters)
    for name, value in program.state_dict.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()) or value.is_meta:
            continue
        # A buffer may hold minus infinity on purpose, as attention masks do.
        is_bad = _is_not_finite if name in parameters else torch.isnan
        if value.numel() and bool(is_bad(torch.stack(torch.aminmax(value))).any()):
            count = int(is_bad(value).sum())
            raise CaptureError(
                f"{name} {list(value.shape)} holds {count} value(s) that are NaN or infinite; "
                "load a sound checkpoint, no pass can be verified on this one"
            )


def _is_not_finite(value: Tensor) -> Tensor:
    return ~torch.isfinite(value)


def refuse_uninitialized(model: nn.Module) -> None:
    """Raise if a lazy module has not seen its first input yet."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise CaptureError(
                f"{name} has no shape yet, it belongs to a lazy module; "
                "run the model once before capturing it"
            )


def refuse_lazy_values(model: nn.Module) -> None:
    """Raise if values are read one tensor at a time, which a capture would lose."""
    if has_lazy_values(model):
        raise CaptureError(f"the values of the module's parameters {READ_LAZILY}")


def mismatch(model: nn.Module, inputs: Inputs) -> str | None:
    """The device or dtype in which an input differs from all parameters."""
    parameters = list(model.parameters())
    devices = {value.device for value in parameters}
    dtypes = {value.dtype for value in parameters if value.is_floating_point()}
    for name, value in named_tensors(inputs):
        if len(devices) == 1 and value.device not in devices and value.ndim:
            return _differs(name, value.device, *devices)
        if len(dtypes) == 1 and value.is_floating_point() and value.dtype not in dtypes:
            return _differs(name, value.dtype, *dtypes)
    return None


def _differs(name: str, given: object, expected: object) -> str:
    return f"{name} is {given} but the parameters are {expected}: convert one of them"


def _reason(error: BaseException) -> str:
    lines = (_OPTIONS_OF_TORCH.sub("", line).strip() for line in str(error).splitlines())
    text = [line for line in lines if line]
    kept = [line for line in text if not line.startswith(_HINTS_FOR_TORCH)][:_REASON_LINES] or [""]
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
