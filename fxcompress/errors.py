"""The errors fxcompress raises, all under one base class.

Every message says three things: what was wrong, where (node, parameter, shape), and what to do.
"""

from __future__ import annotations

import os


class FxCompressError(Exception):
    """Base of every error this package raises on purpose."""


class CaptureError(FxCompressError):
    """The model or its example inputs could not be turned into a graph."""


class InputError(FxCompressError):
    """A program was called with inputs that it was not captured for."""


class GraphError(FxCompressError):
    """A stage of this package left a graph that the next one cannot take: a fault in fxcompress."""


class PlanError(FxCompressError):
    """A plan would break the program; the program was left as it was."""


class RecipeError(PlanError):
    """A text or data that were to say a pass, a step or another recipe say none."""


class BudgetError(PlanError):
    """A budget, a ratio or a glob cannot be met; the message says what the minimum is."""


class VerificationError(FxCompressError):
    """A pass gave a program that does not compute what it must."""


class WriteBackError(FxCompressError):
    """The user's class cannot hold the smaller parameters; the message says what prevents it."""


class LoadError(FxCompressError):
    """A saved program, a manifest or a model specification cannot be read."""


class ExportError(FxCompressError):
    """An ONNX or TensorRT export, check or benchmark could not be made."""


class WriteError(FxCompressError):
    """A file cannot be written. What was there before is as it was.

    Attributes:
        path: What was to be written.
        reason: Why it cannot.
        advice: What to do.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path, self.reason, self.advice = path, reason, advice

    def __str__(self) -> str:
        return f"cannot write {os.fspath(self.path)}: {self.reason}; {self.advice}"
