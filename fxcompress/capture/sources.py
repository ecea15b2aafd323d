"""Exported programs, given as such or as ``.pt2`` files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from fxcompress.capture.tracing import quiet
from fxcompress.errors import CaptureError


def opened(model: object, trust: bool) -> tuple[ExportedProgram, str]:
    """An exported program as given or from a file, and what to call it.

    Args:
        model: An `ExportedProgram`, or the path of a file.
        trust: Whether code in the file may run.

    Raises:
        CaptureError: It is neither, or the file is none of a program.
    """
    if isinstance(model, ExportedProgram):
        return model, "ExportedProgram"
    if isinstance(model, str | Path):
        return _load(Path(model), trust), str(model)
    kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    hint = "; call it to make a module" if callable(model) else ""
    raise CaptureError(
        f"cannot capture {kind}{hint}; give a torch.nn.Module, a torch.fx.GraphModule, "
        "a torch.export.ExportedProgram or the path of a .pt2 file"
    )


def _load(path: Path, trust: bool) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(f"no file {path}; give the path of a program saved by torch.export.save")
    if not trust:
        from fxcompress.capture.archive import refuse_code  # torch.export's archives, on use

        refuse_code(path)
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # a broken archive fails as zip, as JSON, as pickle, by its version
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise CaptureError(
            f"{path} is not an exported program ({type(error).__name__}: {reason}); write one with "
            "torch.export.save(torch.export.export(model, args), path)"
        ) from error
