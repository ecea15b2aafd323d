"""How every command answers: a table, or JSON and nothing else; progress and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fxcompress.errors import FxCompressError

Tell = Callable[..., None]
"""``tell(text)`` or ``tell(text, share)``: what is going on, and how much of it is done."""

_NARROW = 120
INTERRUPTED = 130
"""What shells say of a process that Ctrl-C ended."""
TRACEBACK = "FXCOMPRESS_TRACEBACK"
"""The environment variable that lets errors through as they are."""


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        data: For ``--json``.
        view: For people.
        failed: Why a gate failed; the exit code is 1 then.
    """

    data: Mapping[str, Any]
    view: RenderableType
    failed: str | None = None


def answer(work: Callable[[Tell], Answer], *, as_json: bool) -> None:
    """Do a command's work and print its answer.

    With JSON, whatever else is printed meanwhile goes to stderr; an error becomes
    ``{"error": {"kind", "message"}}`` as well as a message there.

    Nothing is traced: what nobody expected is told as a fault, with how to see where it lies.

    Raises:
        typer.Exit: With code 1, if the work or a gate of it failed; 130 for an interruption.
    """
    elsewhere = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with elsewhere, progress() as tell:
            done = work(tell)
        text = json.dumps(done.data, indent=2) if as_json else ""
    except (typer.BadParameter, typer.Exit, typer.Abort):  # wrong usage has words of its own
        raise
    except BaseException as error:
        if os.environ.get(TRACEBACK):
            raise
        _complain(error, as_json)
        raise typer.Exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1) from error
    with piped():
        if as_json:
            sys.stdout.write(text + "\n")
        else:
            _console(stderr=False).print(done.view)
        sys.stdout.flush()
    if done.failed:
        _console(stderr=True).print(Text(f"failed: {done.failed}"), soft_wrap=True)
        raise typer.Exit(1)


@contextmanager
def piped() -> Iterator[None]:
    """Where nobody reads what is printed any more, the command ends with code 1 and no words."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        raise typer.Exit(1) from None


def _complain(error: BaseException, as_json: bool) -> None:
    kind, message = type(error).__name__, _message(error)
    if as_json:
        said = {"error": {"kind": kind, "message": message}}
        with piped():
            sys.stdout.write(json.dumps(said, indent=2) + "\n")
            sys.stdout.flush()
    text = Text.assemble((f"{kind}: ", "bold red"), message)
    _console(stderr=True).print(text, soft_wrap=True)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; files are as they were, or whole"
    if isinstance(error, FxCompressError | OSError):
        return "\n".join([str(error), *getattr(error, "__notes__", ())])  # which pass it was
    return f"{error}: a fault of fxcompress or of a package; {TRACEBACK}=1 shows where it lies"


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar on stderr where that is a terminal, a line for every stage where it is not."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(text: str, share: float | None = None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=text, total=total, completed=share or 0.0)

        yield tell


class _Lines:
    """Says every stage once, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.perf_counter()
        self._last = ""

    def __call__(self, text: str, share: float | None = None) -> None:
        if text != self._last:
            self._last = text
            seconds = time.perf_counter() - self._start
            self._console.print(Text(f"{seconds:6.1f} s  {text}"), soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _NARROW)  # a file is as wide as its tables
    return console
