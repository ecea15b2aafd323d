"""`import fxcompress` loads neither what few calls need nor what writes and runs ONNX."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fxcompress

SLOW = (
    "fxcompress.export", "google.protobuf", "jinja2", "matplotlib", "networkx", "onnx",
    "onnxruntime", "onnxscript", "psutil", "pydantic", "rich", "scipy", "sklearn", "sympy",
)  # fmt: skip
"""Each takes at least 0.01 s to import, and all of them together over 1 s."""


def _loaded(statement: str) -> set[str]:
    """The modules that a statement loads beyond what torch does, in a process of its own."""
    lines = ["import sys, torch", "before = set(sys.modules)", statement]
    command = [sys.executable, "-c", "\n".join([*lines, "print(*set(sys.modules) - before)"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import fxcompress", "from fxcompress.passes import Folding"]
)
def test_import_loads_nothing_slow(statement: str) -> None:
    loaded = _loaded(statement)
    assert "fxcompress.passes" in loaded
    assert sorted(loaded & set(SLOW)) == []


def test_runtimes_are_loaded_on_first_use() -> None:
    loaded = _loaded("import fxcompress; fxcompress.export.to_onnx")
    assert {"fxcompress.export", "onnx"} <= loaded


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'onnx_files'"):
        getattr(fxcompress, "onnx_files")  # noqa: B009


def test_a_package_does_not_take_the_place_of_a_function() -> None:
    """`fxcompress.explain` and `fxcompress.sensitivity` are modules too, imported at any time."""
    lines = [
        "import fxcompress, types, fxcompress.explain.words, fxcompress.sensitivity",
        "assert isinstance(fxcompress.explain, types.FunctionType)",
        "assert isinstance(fxcompress.sensitivity, types.FunctionType)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
