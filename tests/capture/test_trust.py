"""Files that are code are opened only when somebody says so."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.capture import archive
from fxcompress.errors import CaptureError

Change = Callable[[dict[str, bytes], bytes], object]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x) + torch.tensor([1.0, 2.0])
        return found


class Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.flag), "w")


def exported(path: Path) -> Path:
    shapes = ({0: torch.export.Dim("batch")},)
    x = (torch.randn(4, 3),)
    torch.export.save(torch.export.export(Net(), x, dynamic_shapes=shapes), path)
    return path


def crafted(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    with zipfile.ZipFile(path) as file:
        entries = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in entries.items():
            file.writestr(f"a/{name}", content)


def bomb(flag: Path) -> bytes:
    out = io.BytesIO()
    torch.save(Bomb(flag), out)
    return out.getvalue()


def _config(entries: dict[str, bytes], kind: str, code: bytes, name: str) -> None:
    place = f"data/{kind}/model_{kind}_config.json"
    config = json.loads(entries[place])
    first = next(iter(config["config"].values()))
    first.update(use_pickle=True, path_name=name)
    entries[place] = json.dumps(config).encode()
    entries[f"data/{kind}/{name}"] = code


def _expression(entries: dict[str, bytes]) -> None:
    text = entries["models/model.json"].decode()
    changed = text.replace('"expr_str": "', '"expr_str": "__import__(\'os\').getpid() + ')
    assert changed != text
    entries["models/model.json"] = changed.encode()


def _replaced(entries: dict[str, bytes], old: bytes, new: bytes) -> None:
    entries["models/model.json"] = entries["models/model.json"].replace(old, new)


PICKLES: dict[str, Change] = {
    "weights": lambda e, code: _config(e, "weights", code, "weight_0"),
    "constants": lambda e, code: _config(e, "constants", code, "tensor_0"),
    "custom object": lambda e, code: _config(e, "constants", code, "custom_obj_0"),
    "opaque object": lambda e, code: _config(e, "constants", code, "opaque_obj_0"),
    "old weights": lambda e, code: e.update({"data/weights/model.pt": code}),
    "example inputs": lambda e, code: e.update({"data/sample_inputs/model.pt": code}),
    "library": lambda e, code: e.update({"data/aotinductor/model/model.so": code}),
    "expression": lambda e, _: _expression(e),
    "function": lambda e, _: e.update(
        {
            "models/model.json": e["models/model.json"].replace(
                b"torch.ops.aten.linear.default", b"torch.load"
            )
        }
    ),
    "containers": lambda e, _: _replaced(e, b"builtins.tuple", b"__enum__"),
}


@pytest.mark.parametrize("where", PICKLES)
def test_an_archive_with_code_is_refused(where: str, tmp_path: Path) -> None:
    path, flag = exported(tmp_path / "net.pt2"), tmp_path / "executed"
    crafted(path, lambda entries: PICKLES[where](entries, bomb(flag)))
    with pytest.raises(CaptureError, match="trust=True"):
        fx.compile(path)
    assert not flag.exists()


def test_a_trusted_archive_is_opened(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2")
    out = io.BytesIO()
    torch.save(nn.Parameter(torch.full((2, 3), 2.0)), out)
    crafted(path, lambda entries: _config(entries, "weights", out.getvalue(), "weight_9"))
    with pytest.raises(CaptureError, match="as a pickle"):
        fx.compile(path)
    found = fx.compile(path, trust=True)
    assert found.module.state_dict()["linear.weight"].eq(2).all()


def test_a_plain_archive_needs_no_trust(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2")
    assert fx.compile(path).dynamic == ({0: "batch"},)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    for content in (b"", b"hello", pickle.dumps(1), b"PK\x03\x04"):
        (tmp_path / "net.pt2").write_bytes(content)
        with pytest.raises(CaptureError, match="not an exported program"):
            fx.compile(tmp_path / "net.pt2")


@pytest.mark.parametrize(
    "text", ["s77", "2*s77 + 1", "Max(1, s0 // 2)", "Symbol('s7', integer=True)", "True"]
)
def test_formulas_are_no_code(text: str) -> None:
    assert archive._is_formula(text)


@pytest.mark.parametrize(
    "text", ["__import__('os')", "s0.__class__", "(lambda: 1)()", "open('x', 'w')", "exec('a')"]
)
def test_code_is_no_formula(text: str) -> None:
    assert not archive._is_formula(text)


def test_the_code_of_a_hugging_face_directory_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxcompress.errors import LoadError
    from fxcompress.loaders import load_model

    flag = tmp_path / "executed"
    (tmp_path / "configuration_own.py").write_text(f"open({str(flag)!r}, 'w')\n")
    names = {"AutoConfig": "configuration_own.Own", "AutoModel": "configuration_own.Net"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    with pytest.raises(LoadError, match="--trust"):
        load_model(f"hf:{tmp_path}")
    assert not flag.exists()
