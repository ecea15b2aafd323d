"""A few hundred spoiled files; ``python tests/fuzz_files.py`` tries as many as one likes."""

from __future__ import annotations

from pathlib import Path

from fuzz_files import fuzz


def test_no_spoiled_file_is_believed(tmp_path: Path) -> None:
    outcomes = fuzz(300, 7, tmp_path / "files")
    assert sum(outcomes.values()) == 300
    assert outcomes["manifest", "refused"] > 100
    assert outcomes["bits", "refused"] > 20
