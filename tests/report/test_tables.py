"""The tables of methods: what they share, and one small run through to the page."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fxcompress as fx


def _module(repository: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_takes_what_every_method_takes(repository: Path) -> None:
    methods = _module(repository, "methods").METHODS
    for method in methods.values():
        by_ratio = method(ratio=0.5, exclude=("a.*",), round_to=1)
        by_budget = method(budget=fx.Budget(flops=0.5, allocation="global"), include="b.*")
        assert by_ratio.ratio == 0.5
        assert by_budget.budget.flops == 0.5


def test_points_are_measured_once_and_survive(repository: Path, tmp_path: Path) -> None:
    points_of = _module(repository, "evidence").Points
    asked = []

    def work() -> dict[str, float]:
        asked.append(1)
        return {"accuracy": 0.5}

    file = tmp_path / "points.jsonl"
    for _ in range(2):
        found = points_of(file).measure(work, method="a", point=1)
        assert found["accuracy"] == 0.5
    assert len(asked) == 1


@pytest.mark.slow
def test_the_table_of_resnets_is_written(repository: Path, shared: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, repository / "benchmarks" / "resnet.py", "--test-images", "100",
        "--stages", "none", "bn", "--points", "50%", "2x", "--methods", "magnitude L2", "random",
        "--points-file", tmp_path / "points.jsonl", "--out", tmp_path / "page",
    ]  # fmt: skip
    subprocess.run(
        [*map(str, command)], check=True, env=os.environ | {"FXCOMPRESS_SHARED": str(shared)}
    )
    page = (tmp_path / "page.md").read_text()
    records = json.loads((tmp_path / "page.json").read_text())
    assert "| magnitude L2 |" in page
    assert not [record for record in records if "failed" in record]
    assert (tmp_path / "page_resnet20.png").stat().st_size > 0
    halves = [r["flops"] for r in records if r["key"]["point"] == "2x"]
    assert halves
    assert max(halves) <= 0.5
