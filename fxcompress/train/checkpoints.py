"""The states of a compilation on disk: a run that was killed goes on where it was.

A folder holds a program for every pass and step that is done, and a folder for the step that is
not. Names are digests of all that a state comes of: the dense program with its weights, the
inputs, the options, and the recipes so far. So nothing of another run is ever taken for this one's,
and a run whose last passes were changed goes on from the first that differs. The task's data are
not part of the digest: other data need another folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import is_lazy
from fxcompress.graph.parameters import state_digest
from fxcompress.program import Program, load
from fxcompress.recipes import Recipe
from fxcompress.train.step import Context
from fxcompress.version import __version__


@dataclass(frozen=True)
class Checkpoints:
    """Where the states of one compilation are kept.

    Attributes:
        folder: The user's folder; None keeps nothing.
        key: The digest of the dense program and of how it is compiled.
        passes: All of them, in order.
    """

    folder: Path | None
    key: str
    passes: tuple[Any, ...]

    @classmethod
    def of(
        cls, folder: Path | None, program: Program, passes: Sequence[Any], verify: bool
    ) -> Checkpoints:
        """Those of a compilation that is about to start.

        Raises:
            PlanError: A pass has no recipe to know it by.
        """
        if folder is None:
            return cls(None, "", tuple(passes))
        for one in passes:
            if not isinstance(one, Recipe):
                raise PlanError(
                    f"checkpoint= knows passes by their recipes, and {one!r} is none; "
                    "derive its class from fxcompress.Recipe"
                )
        return cls(folder, _key(program, verify), tuple(passes))

    def latest(self, program: Program, tell: Callable[[str], None]) -> tuple[int, Program]:
        """How many passes are done, and the program after them: with none, the one given."""
        for done in range(len(self.passes), 0, -1):
            path = self._path(done)
            if path is not None and path.exists():
                tell(f"go on after {self.passes[done - 1]!r}, from {path}")
                return done, _like(load(path, allow=_namespaces(program.module)), program)
        return 0, program

    def context(self, number: int, seed: int, tell: Callable[[str], None]) -> Context:
        """What surrounds the run of one step."""
        path = self._path(number + 1)
        return Context(tell, seed, None if path is None else path.with_suffix(""))

    def save(self, program: Program, done: int) -> None:
        """Keep the program after so many passes; what its last step kept for itself goes."""
        path = self._path(done)
        if path is not None:
            program.save(path)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def _path(self, done: int) -> Path | None:
        """The file of the program after so many passes."""
        if self.folder is None:
            return None
        last = type(self.passes[done - 1]).__name__
        text = "\n".join([self.key, *map(repr, self.passes[:done])])
        return self.folder / f"{done:03}-{last}-{_digest(text.encode())[:16]}.fxc"


def _like(loaded: Program, program: Program) -> Program:
    """A loaded program with what is in no file: the task, the inputs, and where tensors lie. In the
    place of lazy values those of the file lie in memory.
    """
    if not is_lazy(program.module):
        home = next((value.device for value in program.module.parameters()), torch.device("cpu"))
        loaded.module.to(home)
    return replace(loaded, args=program.args, kwargs=program.kwargs, task=program.task)


def _key(program: Program, verify: bool) -> str:
    """The digest of a dense program: its code and all its tensors, and how it is compiled."""
    module = program.module
    said = (__version__, torch.__version__, module.code, program.dynamic, program.single)
    options = (program.seed, program.pin, program.probe, program.history, verify)
    inputs = [_told(leaf) for leaf in pytree.tree_leaves((program.args, dict(program.kwargs)))]
    persistent = module.state_dict().keys()
    others = {n: _told(b) for n, b in module.named_buffers() if n not in persistent}
    text = repr((said, options, inputs, others, state_digest(module)))
    return _digest(text.encode())


def _told(value: Any) -> str:
    """A value as the key knows it: a tensor by the digest of its entries."""
    if not isinstance(value, Tensor):
        return repr(value)
    holder = nn.Module()
    holder.register_buffer("value", value.detach())
    return state_digest(holder)


def _namespaces(module: CapturedModule) -> list[str]:
    """Of the operators that the user's own model calls; no file has to be trusted for them."""
    targets = (node.target for node in module.graph.nodes)
    return sorted({one.namespace for one in targets if isinstance(one, OpOverload)})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
