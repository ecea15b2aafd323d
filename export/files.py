"""Write files in one step: beside their place first, then renamed into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxcompress.errors import ExportError


def target_path(path: str | os.PathLike[str]) -> Path:
    """The path to write to.

    Raises:
        ExportError: It is a folder, or its own folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ExportError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise ExportError(f"cannot write {target}: it is a folder; give the name of a file")
    return target


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A draft of the target in a folder next to it; on success all of that folder moves in place.

    The target itself is moved last: one without its companions is worse than the reverse.

    Raises:
        ExportError: The disk refuses; the target is then as it was.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            yield draft
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == draft):
                part.replace(target.with_name(part.name))
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error}") from error
