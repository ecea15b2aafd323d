"""What this suite promises of itself: which warnings fail it, and that no order matters."""

from __future__ import annotations

import pkgutil
import random
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import fxcompress
from seeded import once

OURS = [each.name for each in pkgutil.walk_packages(fxcompress.__path__, "fxcompress.")]
OTHERS = ["torch", "torch.export", "transformers.models", "numpy", "test_anything"]
DEPRECATED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def raised_in(module: str, category: type[Warning]) -> None:
    """Run a line that warns as a line of `module`."""
    code = "import warnings; warnings.warn('told', category)"
    exec(code, ModuleType(module).__dict__ | {"category": category})


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, SyntaxWarning])
def test_a_warning_of_ours_fails(category: type[Warning]) -> None:
    assert {
        "fxcompress.axes.expressions",
        "fxcompress.passes.criteria.wanda",
        "fxcompress.export.onnx.write",
    } <= set(OURS)
    for module in ("fxcompress", *OURS):
        with pytest.raises(category, match="told"):
            raised_in(module, category)


def test_a_number_that_our_code_makes_infinite_fails() -> None:
    """Libraries in C warn in the name of the line that calls them."""
    with pytest.raises(RuntimeWarning, match="divide by zero"):
        exec(
            "one / zero",
            {"__name__": "fxcompress.axes.expressions", "one": np.ones(1), "zero": np.zeros(1)},
        )


@pytest.mark.parametrize("module", OTHERS)
def test_a_warning_of_others_is_shown_and_fails_nothing(module: str) -> None:
    for category in (UserWarning, RuntimeWarning, *DEPRECATED):
        with pytest.warns(category, match="told"):
            raised_in(module, category)
        raised_in_silence(module, category)


@pytest.mark.parametrize("category", DEPRECATED)
def test_a_name_that_a_library_deprecates_fails_nothing(category: type[Warning]) -> None:
    for module in OURS:
        raised_in_silence(module, category)


def raised_in_silence(module: str, category: type[Warning]) -> None:
    """As the filters of the suite have it, without a line in its summary."""
    with warnings.catch_warnings(record=True):
        raised_in(module, category)


def _drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_what_tests_share_does_not_depend_on_who_asks_first() -> None:
    value = once(_drawn)
    before = _drawn()
    first = value()
    after = _drawn()
    assert value() == first
    assert before != after != first
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert (_drawn(), _drawn()) == (before, after)


@pytest.fixture(scope="module")
def shared_values() -> tuple[float, float, float]:
    return _drawn()


def test_shared_fixtures_are_seeded(
    shared_values: tuple[float, float, float], request: pytest.FixtureRequest
) -> None:
    assert shared_values == _drawn() == pytest.approx((0.8444218515, 0.5488135039, 0.4962565899))


def test_a_file_is_about_one_subject(repository: Path) -> None:
    """Of more than 300 lines it is about several."""
    folders = ("fxcompress", "tests", "examples", "benchmarks")
    files = [file for folder in folders for file in (repository / folder).rglob("*.py")]
    lines = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > 300} == {}
