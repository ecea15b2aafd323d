"""Every page of docs/extend has one example, which runs as it stands and imports what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fxcompress.extend

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted((REPOSITORY / "docs/extend").glob("*.md"))
PUBLIC = {"fxcompress", "fxcompress.extend", "fxcompress.passes", "fxcompress.export"}


def example(page: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def imported(code: str) -> set[str]:
    """The modules of fxcompress that a text imports from."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return {name for name in found if name.partition(".")[0] == "fxcompress"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{page.stem}.py"
    script.write_text(example(page), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_import_what_is_public(page: Path) -> None:
    assert imported(example(page)) <= PUBLIC


def test_the_example_of_extensions_imports_what_is_public() -> None:
    code = (REPOSITORY / "examples/extend.py").read_text(encoding="utf-8")
    assert imported(code) <= PUBLIC


def test_all_names_for_extensions_are_there() -> None:
    names = fxcompress.extend.__all__
    assert sorted(names) == list(names)
    public = {name for name in vars(fxcompress.extend) if not name.startswith("__")}
    assert public == set(names)
