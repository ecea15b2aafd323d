"""What does not fit is refused, and a failed save leaves what was there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crafted import manifest_of, write_manifest
from fxcompress.errors import FxCompressError, LoadError, WriteError
from fxcompress.io import load_module, save_module
from saved import SUFFIXES, captured, content, part


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_save_leaves_the_old_one(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, _ = captured("mlp")
    path = tmp_path / suffix
    save_module(path, module, {"step": 1})
    before = content(path)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match="no space"):
        save_module(path, module, {"step": 2})
    assert content(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == [suffix]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_second_save_replaces_the_first(suffix: str, tmp_path: Path) -> None:
    module, _, _ = captured("mlp")
    for step in (1, 2):
        save_module(tmp_path / suffix, module, {"step": step})
    assert load_module(tmp_path / suffix)[1] == {"step": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == [suffix]


def test_a_directory_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    module, _, _ = captured("mlp")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FxCompressError, match="not a saved program"):
        save_module(tmp_path, module, {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def _saved(tmp_path: Path) -> Path:
    save_module(tmp_path / "a", captured("mlp")[0], {})
    return tmp_path / "a"


def test_what_is_not_there_or_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nothing at"):
        load_module(tmp_path / "missing.fxc")
    with pytest.raises(LoadError, match=r"no fxcompress\.json"):
        load_module(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(LoadError, match="holds tensors but no program"):
        load_module(tmp_path / "other.safetensors")
    (tmp_path / "text.fxc").write_text("hello")
    with pytest.raises(LoadError, match="damaged or no safetensors file"):
        load_module(tmp_path / "text.fxc")


def test_damage_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    manifest = path / "fxcompress.json"
    good, data = manifest.read_text(), json.dumps(manifest_of(path))
    manifest.write_text(good[: len(good) // 2])
    with pytest.raises(LoadError, match="damaged"):
        load_module(path)
    for old, new, message in (
        ('"graph"', '"grph"', r"damaged .*graph"),
        ("aten.gelu.default", "aten.gelo.default", r"aten\.gelo\.default.*not registered"),
        ("aten.gelu.default", "builtins.eval", r"builtins\.eval"),
        ('"version": 2', '"version": 99', r"version 99.*upgrade"),
        ('"version": 2', '"version": 1', r"version 1 .*no digests"),
    ):
        write_manifest(path, json.loads(data.replace(old, new)))
        with pytest.raises(LoadError, match=message):
            load_module(path)
    part(path, "extras").unlink()
    manifest.write_text(good)
    with pytest.raises(LoadError, match=r"extras-.*\.safetensors"):
        load_module(path)


def test_a_manifest_that_does_not_fit_its_tensors_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    weights = load_file(part(path, "model"))

    def put(**tensors: Tensor) -> None:
        save_file({**weights, **tensors}, part(path, "model"), {"format": "pt"})

    put(**{"second.bias": torch.ones(9).double()})
    with pytest.raises(LoadError, match=r"'second.bias' is \[11\].*\[9\]"):
        load_module(path)
    put(**{"second.bias": weights["second.bias"].float()})
    with pytest.raises(LoadError, match=r"second.bias.*float64.*float32"):
        load_module(path)
    put(more=torch.ones(1))
    with pytest.raises(LoadError, match=r"tensor 'more', which the manifest does not mention"):
        load_module(path)
    put(**{"second.bias": weights["second.bias"] + 1})
    with pytest.raises(LoadError, match=r"'second.bias' is damaged.*digest"):
        load_module(path)
    del weights["second.bias"]
    put()
    with pytest.raises(LoadError, match=r"'second.bias', which is not in the file"):
        load_module(path)
