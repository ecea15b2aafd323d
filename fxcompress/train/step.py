"""Steps: what a plan cannot be, because it trains, or decides again after training.

A step stands beside passes in the same list and the same history. It gets a program and what
surrounds its run, and gives a program back; what it measured goes into the report as notes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxcompress.arguments import Holds, checked
from fxcompress.errors import FxCompressError, LoadError
from fxcompress.files.write import written
from fxcompress.program import Program
from fxcompress.recipes import Recipe

_NAME = re.compile(r"[\w-]+")
FileName = Annotated[
    str, Holds("of letters, digits, - and _", lambda name: _NAME.fullmatch(name) is not None)
]


@dataclass(frozen=True, eq=False)
class Context:
    """What surrounds one run of a step.

    Attributes:
        tell: Called with a line of text that says how far the step is.
        seed: For everything that draws.
        folder: Where this run keeps what it would not do twice; None where nothing is kept. It is
            the run's own: the program before, the step and its options are the same there.
        notes: What the step measured and decided, for the report.
    """

    tell: Callable[[str], None]
    seed: int = 0
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    @checked(FxCompressError)
    def note(self, text: str) -> None:
        """Tell something in the report."""
        self.notes.append(text)

    @checked(FxCompressError)
    def once(self, name: FileName, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What `make` gives, on the CPU; after an interruption what it gave then, bit by bit.

        Args:
            name: Of this part of the work.
            make: Does the work. It must not depend on anything but the program, the task and what
                other parts gave.
        """
        known = self.read(name)
        return self.write(name, make()) if known is None else known

    @checked(FxCompressError)
    def read(self, name: FileName) -> dict[str, Tensor] | None:
        """The tensors last written under a name, on the CPU; None if there are none.

        Raises:
            LoadError: What is there is damaged.
        """
        path = self._file(name)
        if path is None or not path.exists():
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise LoadError(
                f"{path} is damaged ({error}); remove it to do its part again"
            ) from error

    @checked(FxCompressError)
    def write(self, name: FileName, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep tensors under a name, whole or not at all, and give what `read` will give; those of
        before are replaced.
        """
        plain = {key: value.detach().cpu().clone() for key, value in tensors.items()}
        path = self._file(name)
        if path is not None:
            with written(path) as draft:
                save_file({key: value.contiguous() for key, value in plain.items()}, draft)
        return plain

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"


@dataclass(frozen=True, repr=False)
class Step(Recipe, ABC):
    """Base of steps: a small frozen dataclass, as a pass is, that runs instead of planning.

    Its result depends on the program, its task, the seed and its own options alone, so that a run
    that was interrupted goes on to the same result.
    """

    @abstractmethod
    def run(self, program: Program, ctx: Context) -> Program:
        """The program after the step. The one given stays as it was, and so do its tensors.

        History and the row in the report are added by who runs the step.

        Raises:
            FxCompressError: The program or its task lacks what the step needs.
        """
