"""The process that `coverage.py` starts for a model: it runs the parts asked for and sends what
they found, one after another, so that a part that never ends costs only itself.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from coverage_case import Case
from coverage_parts import PARTS

HERE = Path(__file__).resolve().parent


def work(name: str, folder: Path, parts: Sequence[str], sent: Connection) -> None:
    """Send the figures of the parts, one after another, in the order given."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = Case(name, folder)
    for part in parts:
        if part == "torch-pruning":
            case = Case(name, folder)
        sent.send(found(case, part))
    sent.close()


def found(case: Case, part: str) -> dict[str, Any]:
    """The figures of a part, or the error that it ended with."""
    try:
        return PARTS[part](case)
    except Exception as error:  # whatever is raised is a result, and its first line is told
        lines = str(error).strip().splitlines() or [""]
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno} {last.name}"
        return {"failed": type(error).__name__, "says": lines[0][:400], "where": where}
