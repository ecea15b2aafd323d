"""The command line: ``fxcompress inspect | explain | plan | compile | check | bench | demo``.

Exit codes: 0 for success, 1 for an error of ours or a gate that failed, 2 for wrong usage.
"""

from __future__ import annotations

import logging
import warnings
from typing import Annotated

import typer

import fxcompress
from fxcompress.cli.compress import compile, plan
from fxcompress.cli.look import explain, inspect
from fxcompress.cli.measure import bench, check, demo

__all__ = ["app", "main"]

app = typer.Typer(
    name="fxcompress",
    help="Make PyTorch models smaller, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (inspect, explain, plan, compile, check, bench, demo):
    app.command()(_command)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(fxcompress.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version),
    ] = False,
) -> None:
    """What comes before a command."""


def main() -> None:
    """Run the command line; third parties' warnings and log lines stay out of the answer."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    app(prog_name="fxcompress")
