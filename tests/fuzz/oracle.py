"""What must hold for a net: each law is checked against the user's own model, not our interpreter.

A refusal in our own words is an outcome; whatever else is not right is a fault.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import fxcompress as fx
from fuzz.methods import PASSES
from fuzz.nets import Case, draw
from fxcompress.errors import ExportError, FxCompressError, VerificationError, WriteBackError
from fxcompress.program import Program
from selection import RandomSelection, zero_masked

ROUNDING = 1e-9
"""Float64: sums of a few thousand terms in another order, through a dozen layers."""
WRITTEN_BACK, EXPORTED = 0.15, 0.06
"""Shares of the nets that take the ways out that cost seconds."""


OTHERS = (
    "torch's ONNX exporter",
    "onnxruntime's optimiser",
    "onnxscript's optimiser",
    "numerics",  # the module is as far from itself in double precision: nets may have jumps
)
"""What may be found guilty of a difference, and is no fault of ours."""


class BrokenLawError(AssertionError):
    """A law that does not hold."""


class Refusal(Exception):  # noqa: N818 (an outcome, not an error)
    """A stage that was declined, in words of ours."""


@dataclass
class Outcome:
    """What became of one net.

    Attributes:
        seed: Of the net.
        method: The pass that was tried on it.
        stages: What became of each: ``ok``, or why it was declined.
        fault: The stage whose law failed, with the error; None if all held.
    """

    seed: int
    method: str
    stages: dict[str, str] = field(default_factory=dict)
    fault: str | None = None


def examine(seed: int, limit: int | None = None, only: str | None = None) -> Outcome:
    """Draw the net of a seed and check every law on it.

    Args:
        seed: Of the net, the pass and its options.
        limit: Take so many of the net's random blocks alone.
        only: The name of a pass, instead of a random one.
    """
    rng = random.Random(seed ^ 0x5EED)
    outcome = Outcome(seed, only or rng.choice(sorted(PASSES)))
    torch.manual_seed(seed)
    stage = "draw"
    try:
        trial = Trial(draw(seed, limit), outcome.method, rng)
        for stage, check in trial.stages():
            outcome.stages[stage] = _result(check)
    except Exception as error:  # whatever escapes is the finding
        outcome.fault = f"{stage}: {type(error).__name__}: {error}"
    return outcome


def _result(check: Callable[[], None]) -> str:
    try:
        check()
    except Refusal as refusal:
        return f"refused: {str(refusal)[:160]}"
    return "ok"


class Trial:
    """One net on its way through the compiler; each stage may leave a program for the next."""

    def __init__(self, case: Case, method: str, rng: random.Random) -> None:
        self.case, self.method, self.rng = case, method, rng
        self.before = copy.deepcopy(case.net.state_dict())
        batches = [(_inputs(case, 4, n), torch.arange(4.0).double()) for n in range(2)]
        self.task = fx.Task(batches, _loss)
        self.dense: Program
        self.last: Program

    def stages(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Names of the stages, with what checks them."""
        yield "dense", self.captured
        yield "selection", self.selected
        yield "pass", self.passed
        yield "save and load", self.stored
        if self.rng.random() < WRITTEN_BACK:
            yield "write back", self.written_back
        if self.rng.random() < EXPORTED:
            yield "onnx", self.exported
        yield "nothing changed", self.untouched

    def captured(self) -> None:
        """Without passes every bit is the model's."""
        self.dense = self.last = fx.compile(self.case.net, (self.case.x,), task=self.task)
        for x in _batches(self.case):
            if not torch.equal(_run(self.dense.module, x), _run(self.case.net, x)):
                raise BrokenLawError("the program gives other bits than the model")

    def selected(self) -> None:
        """Exact groups cut are exact groups masked, in the user's own model."""
        if not _shrinks(self.dense, exact=True):
            raise Refusal("nothing may shrink")
        self.last = fx.apply(self.dense, RandomSelection(self.rng.getrandbits(20), exact_only=True))
        masked = zero_masked(copy.deepcopy(self.case.net), self.last)
        self._equal(self.last.module, masked)

    def passed(self) -> None:
        """A pass is proved by its own check, declines, or refuses in words."""
        try:
            self.last = fx.apply(self.dense, PASSES[self.method](self.rng))
        except VerificationError:
            raise
        except FxCompressError as error:
            raise Refusal(str(error)) from error
        for x in _batches(self.case):
            if not bool(torch.isfinite(_run(self.last.module, x)).all()):
                raise BrokenLawError("outputs are not finite")

    def stored(self) -> None:
        """What is loaded gives the bits of what was saved."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.rng.choice(("a.fxc", "a"))
            self.last.save(path)
            loaded = fx.load(path)
        for x in _batches(self.case):
            if not torch.equal(_run(loaded.module, x), _run(self.last.module, x)):
                raise BrokenLawError("the loaded program gives other bits")

    def written_back(self) -> None:
        """The user's own class computes what the graph computes, or is refused."""
        try:
            model = self.last.write_back(self.case.net)
        except WriteBackError as error:
            raise Refusal(str(error)) from error
        self._equal(model, self.last.module)

    def exported(self) -> None:
        """The ONNX file agrees with the program, in single precision, or the check names another's
        fault.
        """
        net = copy.deepcopy(self.case.net).float()
        program = fx.compile(net, (self.case.x.float(),))
        if _shrinks(program):
            program = fx.apply(program, RandomSelection(1))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            try:
                fx.export.to_onnx(program, path)
            except ExportError as error:
                raise Refusal(str(error)) from error
            try:
                fx.export.check(path, program)
            except VerificationError as error:
                if not any(f"guilty is {name}" in str(error) for name in OTHERS):
                    raise
                raise Refusal(str(error)) from error

    def untouched(self) -> None:
        """The model is what it was."""
        after = self.case.net.state_dict()
        if not all(torch.equal(value, after[key]) for key, value in self.before.items()):
            raise BrokenLawError("the model was changed")

    def _equal(self, found: nn.Module, expected: nn.Module) -> None:
        for x in _batches(self.case):
            a, b = _run(found, x), _run(expected, x)
            if a.shape != b.shape:
                raise BrokenLawError(f"shapes {list(a.shape)} and {list(b.shape)}")
            error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
            if not error <= ROUNDING:
                raise BrokenLawError(f"outputs differ by {error:.3g} (relative) at batch {len(x)}")


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(1).mean(1) - target).square().mean()


def _shrinks(program: Program, exact: bool = False) -> bool:
    return any(not g.frozen and (g.exact or not exact) for g in program.groups)


def _inputs(case: Case, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *case.x.shape[1:]), generator=generator, dtype=torch.float64)


def _batches(case: Case) -> list[Tensor]:
    return [case.x, _inputs(case, 3, 7)]


def _run(module: nn.Module, x: Tensor) -> Tensor:
    """On a copy, since a net may change its own buffers, and with gradients, without which
    nn.MultiheadAttention takes a kernel of its own that rounds otherwise.
    """
    result = copy.deepcopy(module)(x.clone())
    assert isinstance(result, Tensor)
    return result.detach()
