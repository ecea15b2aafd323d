"""Write matplotlib figures, the same picture as the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.errors import PlanError
from fxcompress.files.write import file_target, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DATES = {".svg": "Date", ".pdf": "CreationDate", ".ps": "CreationDate", ".eps": "CreationDate"}


def picture_target(path: str | Path) -> Path:
    """Where a picture that is written to `path` goes.

    Raises:
        PlanError: Nothing here writes the format that the ending of the path names.
        WriteError: No file can be written there.
    """
    from matplotlib.backend_bases import FigureCanvasBase  # slow to import

    if Path(path).suffix.removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise PlanError(f"cannot draw to {path}; give a file that ends in .svg, .png or .pdf")
    return file_target(path)


def write_figure(figure: Figure, path: str | Path, *, dpi: float = 100) -> Path:
    """Write a figure without a date, in the format that the ending of the path names.

    Raises:
        PlanError: Nothing here writes that format.
        WriteError: The file cannot be written; what was there is as it was.
    """
    import matplotlib as mpl

    picture_target(path)
    kind = Path(path).suffix
    undated = {_DATES[kind]: None} if kind in _DATES else {}
    with mpl.rc_context({"svg.hashsalt": "fxcompress"}), written(path) as draft:
        figure.savefig(draft, format=kind[1:], metadata=undated, dpi=dpi)
    return Path(path)
