"""What is written wrongly on the command line: a message on stderr, never a traceback, and never
0 after a failure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fxcompress.cli import app

NETS = """
import sys
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.ones(2, 4),)

def leaves():
    sys.exit(0)

def interrupted():
    raise KeyboardInterrupt

def raises():
    raise ValueError("no weights here")

def nothing():
    pass

class Odd(nn.Module):
    def forward(self, x):
        raise RuntimeError("[bold]markup[/bold] and [/unbalanced")

def odd():
    return Odd(), (torch.ones(2, 4),)

def slow():
    import time
    print("sleeping", file=sys.stderr, flush=True)
    time.sleep(60)

def endless():
    while True:
        yield torch.ones(2, 4)
"""

WORDS = (
    "", "abc", "nets.py", "nets.py:", "nets.py:good", "nets.py:leaves", "nets.py:raises",
    "nets.py:nothing", "nets.py:odd", "nets.py:endless", "none.py:good", "torchvision:", "timm:abc",
    "hf:none", "hf:", ":", "a:b:c", "x.fxc", "x.onnx", "x.pt2", "x.npy", ".", "/", "/dev/null",
    "0.weight", "*", "0.5", "1.5", "-1", "0", "nan", "inf", "1e400", "²", "magnitude", "magnitude(",
    "magnitude(p=1) + (2)", "magnitude(p={[]: 1})", "magnitude(p=True)", "magnitude(ratio=2)",
    "nm-sparsity(n=9)", "2x4", "2x4:abc", "x=2x4", "9999999999999999x4", "0x0", "auto", "heads",
    "99999999999999999999999999",
)  # fmt: skip
OPTIONS = {
    "inspect": ["-i", "--weights", "--pin", "--seed", "--svg", "--group"],
    "explain": ["-i", "--weights", "--pin", "--seed", "--svg"],
    "plan": ["-p", "--ratio", "--flops", "--params", "--round-to", "--include", "--exclude",
             "--dims", "--data", "--seed", "-i", "--weights"],
    "compile": ["-o", "--onnx", "--write-back", "--html", "-p", "--ratio", "--bytes", "--data"],
    "check": ["--rtol", "--atol", "--samples", "--seed", "-i"],
    "bench": ["--rounds", "--warmup", "--threads", "--seed", "-i"],
    "demo": ["--seed"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    for name in ("x.fxc", "x.onnx", "x.pt2", "x.npy"):
        (tmp_path / name).write_bytes(b"damaged")
    return tmp_path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def check(result: Result, code: int | None = None) -> None:
    """A failure is told on stderr, and by the code."""
    error = result.exception
    assert error is None or isinstance(error, SystemExit), repr(error)
    assert "Traceback" not in result.output
    assert "fault of fxcompress" not in result.stderr, result.stderr
    assert result.exit_code == 0 or result.stderr.strip()
    assert code is None or result.exit_code == code, result.output


GOOD = "nets.py:good"
LARGE = "9999999999999999x4"
CASES: dict[str, tuple[list[str], int, str]] = {
    "a factory that leaves": (["inspect", "nets.py:leaves"], 1, "nets.py:leaves"),
    "a factory that raises": (["inspect", "nets.py:raises"], 1, "no weights here"),
    "a factory of nothing": (["inspect", "nets.py:nothing"], 1, "must return a model"),
    "an interruption": (["inspect", "nets.py:interrupted"], 130, "interrupted"),
    "markup in a message": (["inspect", "nets.py:odd"], 1, "[/unbalanced"),
    "an empty budget": (["plan", GOOD, "--flops", ""], 2, "is no number"),
    "a pass with more after it": (["plan", GOOD, "-p", "magnitude(p=1) + (2)"], 2, "write"),
    "an option that hashes nothing": (["plan", GOOD, "-p", "magnitude(p={[]:1})"], 2, "write"),
    "another digit": (["plan", GOOD, "--ratio", "0.5", "--round-to", "²"], 1, "round_to"),
    "an option of another type": (["plan", GOOD, "-p", "magnitude(ratio='a')"], 1, "ratio must"),
    "an input too large": (["inspect", GOOD, "-i", LARGE], 1, LARGE),
    "a negative seed": (["inspect", GOOD, "--seed", "-1"], 1, "seed must"),
    "a seed of the demo": (["demo", "--seed", "-1"], 1, "seed must"),
    "a damaged program": (["inspect", "x.fxc"], 1, "x.fxc"),
    "a damaged export": (["inspect", "x.pt2"], 1, "x.pt2"),
    "damaged data": (["plan", GOOD, "--ratio", "0.5", "--data", "x.npy"], 1, "x.npy"),
    "weights that are a folder": (["inspect", GOOD, "--weights", "."], 1, "'.'"),
    "a picture of no format": (["inspect", GOOD, "--svg", "a.xyz"], 1, "a.xyz"),
    "an output in no folder": (["compile", GOOD, "-o", "/proc/no/x.fxc"], 1, "/proc/no"),
    "an export onto a folder": (["compile", GOOD, "--onnx", "."], 1, "."),
    "a page onto a folder": (["compile", GOOD, "--html", "."], 1, "."),
    "a file for bench that is none": (["bench", "x.onnx"], 1, "x.onnx"),
    "too many threads": (["bench", GOOD, "--threads", "99999"], 1, "threads"),
    "no rounds": (["bench", GOOD, "--rounds", "1"], 2, "rounds"),
    "a tolerance below zero": (["check", "x.onnx", GOOD, "--rtol", "-1"], 1, "rtol"),
    "no such model": (["inspect", "torchvision:resnet1"], 1, "nearest"),
    "a package's own folder": (["inspect", "/"], 1, "/"),
    "no command": (["compres", GOOD], 2, "No such command"),
    "no such option": (["inspect", GOOD, "--ratoi", "1"], 2, "No such option"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_failure_is_a_message_and_a_code(case: str) -> None:
    words, code, said = CASES[case]
    result = run(*words)
    check(result, code)
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("case", [name for name, (_, code, _) in CASES.items() if code in (1, 130)])
def test_a_failure_is_json_where_that_is_asked_for(case: str) -> None:
    words, code, said = CASES[case]
    result = run(*words, "--json")
    check(result, code)
    error: dict[str, Any] = json.loads(result.stdout)["error"]
    assert said in " ".join(error["message"].split())


@given(st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_whatever_is_written_nothing_is_traced(data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(sorted(set(OPTIONS) - {"demo"})))
    words = data.draw(st.lists(st.sampled_from(WORDS), max_size=2))
    first = ["nets.py:good"] if data.draw(st.booleans()) else []
    chosen = data.draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=2))
    options = [part for name in chosen for part in (name, data.draw(st.sampled_from(WORDS)))]
    check(run(command, *first, *words, *options))


def test_an_output_that_cannot_be_written_is_told_before_the_work() -> None:
    result = run("compile", "nets.py:raises", "-o", "/dev/null")
    check(result, 1)
    assert "/dev/null" in result.stderr


def test_data_that_do_not_fit_are_refused() -> None:
    np.save("three.npy", np.ones((4, 3), dtype=np.float32))
    result = run("plan", "nets.py:good", "--ratio", "0.5", "--data", "three.npy")
    check(result, 1)
    assert "(4, 3)" in result.stderr


def _process(*words: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fxcompress", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=_hear_interrupts, **options
    )  # fmt: skip


def _hear_interrupts() -> None:
    """As in a terminal, however the tests were started: what runs behind a shell ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_130_and_no_traceback() -> None:
    process = _process("inspect", "nets.py:slow")
    assert process.stderr is not None
    line = next(line for line in process.stderr if "sleeping" in line)
    assert line
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    process.wait(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert "interrupted" in told


def test_a_closed_pipe_is_no_success_and_no_traceback() -> None:
    process = _process("inspect", "nets.py:good", "--json")
    assert process.stdout is not None
    process.stdout.close()
    time.sleep(0)
    assert process.stderr is not None
    told = process.stderr.read()
    assert process.wait(timeout=120) != 0
    assert "Traceback" not in told
    assert "Exception ignored" not in told
