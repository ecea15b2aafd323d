"""Name the guilty one when a file and its program disagree."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fxcompress.errors import ExportError
from fxcompress.export.checks.compare import OutputError, Tolerance, distances
from fxcompress.export.onnx.exportable import Exportable, Inputs, run_module
from fxcompress.export.onnx.write import describe, to_onnx
from fxcompress.export.runtimes.protocol import Runtime, Session
from fxcompress.graph.precision import in_double, inputs_in_double

# Two float32 programs that sum in another order differ by a few times what each loses.
_ROUNDING_SLACK = 10


@dataclass(frozen=True)
class Blame:
    """Who made the difference, and what to do about it."""

    guilty: str
    advice: str

    def __str__(self) -> str:
        return f"{self.guilty}: {self.advice}"


def optimiser_of(runtime: Runtime) -> Blame:
    """The runtime's own graph optimisations."""
    return Blame(
        f"{runtime.name}'s optimiser",
        f"the file is right with graph optimisations off; report it to {runtime.name}",
    )


NUMERICS = Blame(
    "numerics",
    "the module is as far from itself in float64; pass a larger rtol if that is good enough",
)
WRONG_FILE = Blame(
    "the file",
    "a fresh export of the program is right, so the file is of another program or state; "
    "export it again",
)
ONNXSCRIPT = Blame(
    "onnxscript's optimiser",
    "the export is right without it; use to_onnx(..., optimize=False)",
)
EXPORTER = Blame(
    "torch's ONNX exporter",
    "wrong without any optimisation; try another opset, or report it to torch",
)
REFUSED = Blame(
    "torch's ONNX exporter",
    "it no longer exports the program, so the file cannot be its own; export it again",
)


@dataclass(frozen=True)
class Disagreement:
    """One input on which a file and its program are too far apart."""

    path: Path
    runtime: Runtime
    module: nn.Module
    inputs: Inputs
    tensors: Sequence[Tensor]
    expected: Mapping[str, Tensor]
    errors: Sequence[OutputError]
    allowed: Tolerance


def errors_of(
    session: Session,
    tensors: Sequence[Tensor],
    expected: Mapping[str, Tensor],
    allowed: Tolerance,
) -> tuple[OutputError, ...]:
    """Run a file and compare; a run that fails is as wrong as one that gives other numbers."""
    call = session.bind(tensors)
    try:
        found = session.named(call())
    except ExportError as error:
        names = ", ".join(expected)
        return (OutputError(names, math.inf, math.inf, False, str(error)),)
    return distances(expected, found, allowed)


def find_guilty(program: Exportable, case: Disagreement) -> Blame:
    """Take one suspect away after the other until file and program agree."""

    def agrees(path: str | os.PathLike[str], *, optimize: bool) -> bool:
        with case.runtime.open(path, optimize=optimize) as session:
            errors = errors_of(session, case.tensors, case.expected, case.allowed)
        return all(error.ok for error in errors)

    if _is_noise(case):
        return NUMERICS
    if agrees(case.path, optimize=False):
        return optimiser_of(case.runtime)
    with tempfile.TemporaryDirectory() as folder:
        opset, fresh = describe(case.path).opset, Path(folder) / "fresh.onnx"
        try:
            if agrees(to_onnx(program, fresh, opset=opset), optimize=True):
                return WRONG_FILE
            if agrees(to_onnx(program, fresh, opset=opset, optimize=False), optimize=False):
                return ONNXSCRIPT
        except ExportError:
            return REFUSED
    return EXPORTER


def _is_noise(case: Disagreement) -> bool:
    """Whether the module's own rounding, seen against float64, is of the size of the errors."""
    wide = inputs_in_double(list(case.tensors))
    try:
        exact = run_module(in_double(case.module), case.inputs, wide)
    except ExportError:
        return False  # a dtype is written into the model: there is no float64 to compare with
    rounding = {
        name: (tensor.double() - exact[name]).abs().max().item()
        for name, tensor in case.expected.items()
        if tensor.is_floating_point()
    }
    return all(
        error.ok or error.absolute <= _ROUNDING_SLACK * rounding.get(error.output, 0.0)
        for error in case.errors
    )
