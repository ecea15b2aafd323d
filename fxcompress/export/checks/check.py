"""Run an ONNX file in a runtime against the program it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from fxcompress.ambient import sealed
from fxcompress.arguments import AnyPath, Interval, NotNegative, Seed, checked
from fxcompress.errors import ExportError, VerificationError
from fxcompress.export.checks.blame import Blame, Disagreement, errors_of, find_guilty
from fxcompress.export.checks.compare import OutputError, tolerance_for
from fxcompress.export.onnx.exportable import (
    Exportable,
    Inputs,
    inference_module,
    inputs_of,
    run_module,
)
from fxcompress.export.onnx.extremes import Extremes
from fxcompress.export.onnx.samples import drawn
from fxcompress.export.onnx.write import describe
from fxcompress.export.runtimes.protocol import runtime_for


@dataclass(frozen=True)
class InputCheck:
    """The comparison on one input: what it was, and how far each output is off."""

    label: str
    outputs: tuple[OutputError, ...]

    @property
    def ok(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(error.ok for error in self.outputs)


@dataclass(frozen=True)
class CheckResult:
    """The comparison on all inputs; ``blame`` names the guilty one when it failed."""

    path: Path
    inputs: tuple[InputCheck, ...]
    tolerance: float
    blame: Blame | None = None
    notes: tuple[str, ...] = ()
    runtime: str = "onnxruntime"

    @property
    def ok(self) -> bool:
        """Whether file and program agree on every input."""
        return all(compared.ok for compared in self.inputs)

    @property
    def max_error(self) -> float:
        """The largest relative error of any output on any input."""
        return max(error.relative for compared in self.inputs for error in compared.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "max_relative_error": None if math.isinf(self.max_error) else self.max_error,
            "tolerance": self.tolerance,
            "inputs": [
                {
                    "label": compared.label,
                    "outputs": [error.to_dict() for error in compared.outputs],
                }
                for compared in self.inputs
            ],
            "blame": str(self.blame) if self.blame else None,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        verdict = "agrees with" if self.ok else "differs from"
        lines = [
            f"{self.path} {verdict} the program in {self.runtime}: max relative error "
            f"{self.max_error:.2g} over {len(self.inputs)} inputs (allowed {self.tolerance:.2g})"
        ]
        for compared in self.inputs:
            lines += [
                f"  {compared.label}: {error.output} is off by {error.relative:.2g}"
                + (f" ({error.problem})" if error.problem else "")
                for error in compared.outputs
                if not error.ok
            ]
        lines += [f"  guilty is {self.blame}"] if self.blame else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@checked(ExportError)
@sealed
def check(
    path: AnyPath,
    program: Exportable,
    *,
    rtol: NotNegative | None = None,
    atol: NotNegative | None = None,
    samples: Annotated[int, Interval("[1, 10000]")] = 3,
    seed: Seed = 0,
    raise_on_failure: bool = True,
    runtime: str = "onnxruntime",
) -> CheckResult:
    """Compare a file, run by a runtime with its optimisations on, with the program in torch.

    The inputs are the program's example, then random ones of the same dtypes and ranges, the last
    of them at other sizes where dimensions may vary; then, for every free dimension of a compiled
    program, the ends of its range. A very large end is clipped, and a note says so. An output
    passes if ``max|a - b|`` is at most ``rtol`` of ``max|a|``, or at most ``atol``; integers and
    flags must be equal.

    Args:
        path: The ONNX file.
        program: What it was exported from; run on the CPU, in evaluation mode.
        rtol: Instead of the tolerance for the program's least precise dtype (1e-4 in float32).
        atol: The same for the absolute difference (1e-8 in float32).
        samples: How many inputs beside the ends, the example being the first; 1 tries no other.
        seed: For the random ones.
        raise_on_failure: Give the failed result back instead of raising.
        runtime: The name of what runs the file, see `fxcompress.export.runtimes`.

    Raises:
        VerificationError: They differ; the message names input, output, distance and culprit.
        ExportError: There is nothing to compare: no such file or runtime, or inputs that do not
            match.
    """
    file, inputs, engine = describe(path), inputs_of(program), runtime_for(path, runtime)
    compared: list[InputCheck] = []
    blame: Blame | None = None
    zero: set[str] | None = None
    tried: list[Mapping[str, int]] = []
    extremes = Extremes.of(program.module, inputs)
    with engine.open(path) as session, inference_module(program) as module:
        state = [*module.parameters(), *module.buffers(), *inputs.tensors]
        allowed = tolerance_for(state, rtol, atol)
        for label, sizes, tensors in _cases(module, inputs, extremes, samples, seed):
            tried.append(sizes)
            expected = run_module(module, inputs, tensors)
            errors = errors_of(session, tensors, expected, allowed)
            compared.append(InputCheck(label, errors))
            silent = {name for name, tensor in expected.items() if not tensor.any()}
            zero = silent if zero is None else zero & silent
            if not blame and not compared[-1].ok:
                case = Disagreement(
                    file.path, engine, module, inputs, tensors, expected, errors, allowed
                )
                blame = find_guilty(program, case)
    notes = tuple(
        f"{name} is zero on every input: agreeing there proves little" for name in zero or ()
    )
    notes += tuple(extremes.notes(tried)) if samples > 1 else ()
    result = CheckResult(file.path, tuple(compared), allowed.relative, blame, notes, runtime)
    if raise_on_failure and not result.ok:
        raise VerificationError(str(result))
    return result


def _cases(
    module: nn.Module, inputs: Inputs, extremes: Extremes, samples: int, seed: int
) -> Iterator[tuple[str, Mapping[str, int], Sequence[Tensor]]]:
    """What to run: its name, its sizes, its inputs."""

    def runs(sizes: Mapping[str, int]) -> bool:
        try:
            run_module(module, inputs, drawn(inputs, sizes, seed))
        except ExportError:
            return False
        return True

    yield "example", inputs.sizes(), inputs.tensors
    if samples == 1:
        return
    usual: list[dict[str, int]] = [{}] * (samples - 2) + [extremes.neighbours()]
    ends = [sizes for sizes in extremes.ends(runs) if sizes not in usual]
    for draw, sizes in enumerate([*usual, *ends], start=1):
        label = ", ".join(["random", *(f"{name}={size}" for name, size in sizes.items())])
        yield label, sizes, drawn(inputs, sizes, seed + draw)
