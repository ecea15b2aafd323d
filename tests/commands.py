"""Run the command in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from fxcompress.cli import app


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])
