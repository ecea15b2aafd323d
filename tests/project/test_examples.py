"""The examples, run as a user runs them, on little data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _run(repository: Path, script: str, *arguments: str) -> str:
    """What a script prints; it must not fail."""
    done = subprocess.run(
        [sys.executable, str(repository / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "table.json").read_text())["rows"]
    return rows


def test_cifar10_resnet_keeps_its_budget_and_recovers(
    repository: Path, shared: Path, tmp_path: Path
) -> None:
    printed = _run(
        repository, "examples/cifar10_resnet.py", "--quick", "--data", str(shared / "data"),
        "--checkpoint", "cifar10_resnet20_optA", "--out", str(tmp_path),
    )  # fmt: skip
    dense, half = _rows(tmp_path)
    assert dense["accuracy"] > 85
    assert half["share"] <= 0.5
    assert half["params"] < dense["params"]
    assert half["accuracy"] > half["pruned"]
    assert half["onnx_bytes"] < dense["onnx_bytes"]
    assert "0.5 of FLOPs" in printed
    assert (tmp_path / "0.5-of-FLOPs.safetensors").exists()


def test_stories_llama_tells_a_story_in_every_size(
    repository: Path, shared: Path, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    _run(
        repository, "examples/stories_llama.py", "--quick", "--data", str(shared / "data"),
        "--out", str(tmp_path),
    )  # fmt: skip
    dense, *smaller = _rows(tmp_path)
    assert dense["perplexity"] < 5
    assert [row["name"] for row in smaller] == ["MLP 0.25", "MLP and heads 0.25", "all 0.25"]
    sizes = [row["params"] for row in (dense, *smaller)]
    assert sizes == sorted(sizes, reverse=True)
    for row in smaller:
        assert dense["perplexity"] < row["perplexity"] < row["pruned"]
        assert row["text"].startswith("Once upon a time")


def test_compile_time_writes_its_table_and_goes_on_where_it_was(
    repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")
    arguments = (
        "benchmarks/compile_time.py",
        "--models",
        "ResNet-50",
        "--runs",
        "1",
        "--out",
        str(tmp_path / "t"),
    )
    _run(repository, *arguments)
    first = (tmp_path / "t.json").read_text()
    _run(repository, *arguments)
    assert (tmp_path / "t.json").read_text() == first
    assert "| ResNet-50 " in (tmp_path / "t.md").read_text()
