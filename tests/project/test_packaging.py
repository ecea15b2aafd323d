"""What is installed is what the checkout shows, and it asks for what it imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fxcompress

TOP_LEVEL = ("passes", "export")
DISTRIBUTIONS = {"jinja2": "Jinja2", "sklearn": "scikit-learn", "yaml": "PyYAML"}
# One adapter serves both; the first comes with NVIDIA's own installer as well as from PyPI.
EITHER = {"tensorrt": "tensorrt-rtx"}


@pytest.fixture(scope="module")
def config(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def _packages(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The packages that Python sees in a checkout, links followed."""
    yield name, root.resolve()
    for child in sorted(root.iterdir()):
        if (child / "__init__.py").is_file():
            yield from _packages(child, f"{name}.{child.name}")


def _imports(folder: Path) -> Iterator[tuple[str, bool]]:
    """Names of top-level modules imported in `folder`, and whether at the time of import."""
    for file in sorted(folder.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            eager = node in tree.body
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], eager) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0], eager


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", line)[0].lower().replace("_", "-") for line in requirements}


def _distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, EITHER.get(module, module)).lower().replace("_", "-")


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_a_top_level_link_is_for_people(repository: Path, name: str) -> None:
    assert (repository / name).is_symlink()
    assert (repository / name).readlink() == Path("fxcompress") / name


def test_type_checkers_see_an_editable_install(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("import fxcompress\nfxcompress.passes.Folding(ratio=0.5)\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_the_version_is_said_once(config: dict[str, Any]) -> None:
    assert "version" in config["project"]["dynamic"]
    assert importlib.metadata.version("fxcompress") == fxcompress.__version__


def test_every_import_is_asked_for(repository: Path, config: dict[str, Any]) -> None:
    core = _names(config["project"]["dependencies"])
    extras = {name for key in ("baselines", "models", "trt-rtx") for name in _extra(config, key)}
    own = {"fxcompress", *sys.stdlib_module_names}

    for _, folder in _packages(repository / "fxcompress", "fxcompress"):
        for module, eager in _imports(folder):
            if module not in own:
                allowed = core if eager else core | extras
                assert _distribution(module) in allowed, f"{folder.name}: import {module}"


def _extra(config: dict[str, Any], name: str) -> set[str]:
    return _names(config["project"]["optional-dependencies"][name])


def test_importing_the_package_leaves_the_extras_alone() -> None:
    heavy = ("torchvision", "timm", "transformers", "tensorrt", "tensorrt_rtx")
    code = f"import sys, fxcompress; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_a_wheel_holds_every_module_even_where_links_are_not_kept(
    repository: Path, tmp_path: Path
) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tmp_path / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "fxcompress", tmp_path / "fxcompress", ignore=ignore)

    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path / "dist"), str(tmp_path)], check=True)

    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fxcompress/")}
    wanted = {
        f"{name.replace('.', '/')}/{path.name}"
        for name, folder in _packages(repository / "fxcompress", "fxcompress")
        for path in folder.glob("*.py")
    }
    assert held == wanted | {"fxcompress/py.typed"}
