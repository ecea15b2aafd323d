"""How the command tells its version, its passes, and blocks that are alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fxcompress
from commands import run
from fxcompress.cli.recipes import known_passes

DEEP = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        block = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.blocks = nn.ModuleList(block() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)

def model():
    return Net(), (torch.ones(2, 4),)
"""


def test_every_pass_that_needs_no_code_has_a_name() -> None:
    names = set(known_passes())
    assert {"magnitude", "random", "fold-batch-norm", "nm-sparsity"} <= names
    assert not names & {"structured-pass", "selection"}


def test_it_runs_as_a_module_and_tells_its_version() -> None:
    command = [sys.executable, "-m", "fxcompress", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fxcompress.__version__


def test_blocks_that_are_alike_share_a_line(tmp_path: Path) -> None:
    (tmp_path / "deep.py").write_text(DEEP)
    spec = f"{tmp_path / 'deep.py'}:model"
    short, long = run("inspect", spec).stdout, run("inspect", spec, "--all").stdout

    assert "blocks.*.0" in short
    assert "blocks.1.0" not in short
    assert all(f"blocks.{number}.0" in long for number in range(3))
    said = run("explain", spec, "stem.weight").stdout
    assert "blocks.*.2 (3)" in said
