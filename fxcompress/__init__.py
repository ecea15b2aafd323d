"""fxcompress: a compiler for model compression.

`compile` captures a PyTorch model, finds the channels that move together, runs passes that remove,
merge or mask them, proves each result and gives back a smaller model of the same interface. Passes
are in `fxcompress.passes`, ONNX and runtimes in `fxcompress.export`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from fxcompress import passes
from fxcompress.arguments import checked
from fxcompress.budget import Budget
from fxcompress.compiler import apply, compile
from fxcompress.edit.plan import (
    Edit,
    Offset,
    Plan,
    Project,
    Reparametrize,
    Replace,
    Store,
    TrainableProject,
)
from fxcompress.errors import (
    BudgetError,
    CaptureError,
    ExportError,
    FxCompressError,
    LoadError,
    PlanError,
    RecipeError,
    VerificationError,
    WriteBackError,
    WriteError,
)
from fxcompress.program import Program, load
from fxcompress.recipes import Pipeline, Recipe
from fxcompress.rules import axis_rule
from fxcompress.sensitivity import Sensitivity, sensitivity
from fxcompress.task import Task
from fxcompress.version import __version__

if TYPE_CHECKING:
    from fxcompress import export
else:

    def __getattr__(name: str) -> ModuleType:
        """`export` on first use: what writes and runs ONNX is slow to import."""
        if name == "export":
            return importlib.import_module(f"{__name__}.export")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# The package of that name is bound here when it is first imported: before the function, or it would
# take the function's place later.
importlib.import_module(f"{__name__}.explain")


@checked(PlanError)
def explain(program: Program, first: str, second: str | None = None) -> str:
    """Why two parameters move together, as the chain of operations that ties them.

    Args:
        program: A compiled program.
        first: The name of a parameter.
        second: The name of another; None for all groups that hold `first`.

    Raises:
        PlanError: The program has no parameter of that name; the message has the nearest ones.
    """
    return program.explain(first, second)


__all__ = [
    "Budget",
    "BudgetError",
    "CaptureError",
    "Edit",
    "ExportError",
    "FxCompressError",
    "LoadError",
    "Offset",
    "Pipeline",
    "Plan",
    "PlanError",
    "Program",
    "Project",
    "Recipe",
    "RecipeError",
    "Reparametrize",
    "Replace",
    "Sensitivity",
    "Store",
    "Task",
    "TrainableProject",
    "VerificationError",
    "WriteBackError",
    "WriteError",
    "__version__",
    "apply",
    "axis_rule",
    "compile",
    "explain",
    "export",
    "load",
    "passes",
    "sensitivity",
]
