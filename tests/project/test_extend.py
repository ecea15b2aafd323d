"""The example of a pass and a rule of one's own, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_pass_and_a_rule_of_ones_own_work(repository: Path) -> None:
    script = repository / "examples/extend.py"  # its rule and operator stay in its own process
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "verified: zero-masked" in done.stdout
