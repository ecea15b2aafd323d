"""From what was written on the command line to a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fxcompress.cli.answers import Tell
from fxcompress.compiler import compile
from fxcompress.loaders import Loaded, load_model, load_task
from fxcompress.program import Pass, Program
from fxcompress.stages import run
from fxcompress.train import Step


@dataclass(frozen=True)
class Request:
    """A model and how to capture it."""

    spec: str
    inputs: Sequence[str] | None = None
    weights: Path | None = None
    seed: int = 0
    static: bool = False
    pin: Sequence[str] | None = None
    probe: bool = False
    data: str | None = None
    trust: bool = False
    checkpoint: Path | None = None

    def load(self, tell: Tell) -> Loaded:
        """The model with its example inputs."""
        tell(f"load {self.spec}")
        return load_model(
            self.spec, self.inputs or (), weights=self.weights, seed=self.seed, trust=self.trust
        )

    def program(
        self,
        tell: Tell,
        passes: Sequence[Pass | Step] = (),
        *,
        verify: bool = True,
        loaded: Loaded | None = None,
    ) -> Program:
        """The program after the passes; a saved program goes on from where it was."""
        program = self._captured(loaded or self.load(tell), tell)
        if self.data:
            tell(f"load {self.data}")
            program = replace(program, task=load_task(self.data, program))
        return run(program, passes, tell, verify=verify, checkpoint=self.checkpoint)

    def _captured(self, loaded: Loaded, tell: Tell) -> Program:
        if (saved := loaded.program) is not None:
            pin, probe = (*saved.pin, *(self.pin or ())), saved.probe or self.probe
            return replace(saved, pin=pin, probe=probe)
        program = compile(
            loaded.model,
            loaded.args,
            loaded.kwargs,
            dynamic=None if self.static else "batch",
            pin=self.pin or (),
            probe=self.probe,
            seed=self.seed,
            on_progress=tell,
            trust=self.trust,
        )
        return _called(program, loaded.label)


def _called(program: Program, label: str) -> Program:
    """The report speaks of the model as the user did."""
    return replace(program, report=replace(program.report, model=label))
