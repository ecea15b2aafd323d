"""What every test shares: one thread, fixed seeds, optional data, a torchvision that imports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

import fxcompress as fx
import seeded
import torchvision_shim
from normed_convs import NormedConvs

REPOSITORY = Path(__file__).resolve().parent.parent

# Kept for the whole session: the declarations vanish with the object.
_TORCHVISION = torchvision_shim.install()

# pytest-xdist runs a process for each core; more threads in each would only take turns.
torch.set_num_threads(1)


class _TorchRandom:
    """Torch's generator as hypothesis wants them, so that a failing example replays exactly."""

    def seed(self, value: int) -> None:
        torch.manual_seed(value)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_TORCH_RANDOM = _TorchRandom()  # hypothesis only holds a weak reference
hypothesis.register_random(_TORCH_RANDOM)

# No deadlines: the first example of a law pays for captures and compilations. No health check that
# measures time or luck: on a busy machine it would fail a law that holds.
LAWS = hypothesis.settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.filter_too_much,
    ],
)
hypothesis.settings.register_profile("default", LAWS, max_examples=25)
hypothesis.settings.register_profile("thorough", LAWS, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """What tests share is imported by its name alone: looked through for doctests, it would be a
    second module, with second operators and recipes of the same names.
    """
    own = collection_path.is_relative_to(Path(__file__).parent) and collection_path.suffix == ".py"
    return True if own and not collection_path.name.startswith("test_") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the seed of the order, which `-q` leaves out of the header."""
    if config.pluginmanager.hasplugin("randomly"):
        seed = config.getoption("randomly_seed")
        terminalreporter.line(f"the order of the tests: --randomly-seed={seed}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seeded.seed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    """What several tests share does not depend on which of them comes first, nor they on it."""
    with nullcontext() if fixturedef.scope == "function" else seeded.apart():
        return (yield)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data packs and reference values, which lies outside the repository."""
    folder = Path(os.environ.get("FXCOMPRESS_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set FXCOMPRESS_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def reference_scores(shared: Path) -> dict[str, torch.Tensor]:
    """The reference scores of the baselines, and the weights they are of."""
    with np.load(shared / "golden" / "baseline_scores.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="session")
def scored(reference_scores: dict[str, torch.Tensor]) -> fx.Program:
    """The net that the reference scores are of."""
    names = ("W_producer", "W_consumer", "bn_gamma")
    net = NormedConvs(*(reference_scores[name] for name in names)).eval()
    return fx.compile(net, (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
