"""Graphs in files that do not fit together, never end or nest without end are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress as fx
from crafted import change_manifest
from crafted_nodes import Craft, called, node_of, refused
from fxcompress.errors import LoadError
from programs import program


def _twice(manifest: dict[str, Any], _: str) -> None:
    nodes = manifest["graph"]["nodes"]
    nodes.insert(1, nodes[0])


def _later(manifest: dict[str, Any], _: str) -> None:
    nodes = manifest["graph"]["nodes"]
    first = next(n for n in nodes if n["op"] == "call_function")
    first["args"]["tuple"][0] = {"node": nodes[-2]["name"]}


BROKEN: dict[str, tuple[Craft, str]] = {
    "two nodes of one name": (_twice, "called"),
    "a node that comes later": (_later, "not there"),
    "no output": (lambda m, _: m["graph"]["nodes"].pop(), "output"),
    "two outputs": (
        lambda m, _: m["graph"]["nodes"].insert(3, {**m["graph"]["nodes"][-1], "name": "o"}),
        "output",
    ),
    "a buffer of nobody's": (
        lambda m, _: node_of(m, "get_attr").update(target="forward"),
        "reads nothing",
    ),
    "a module of nobody's": (
        lambda m, _: node_of(m, "call_function").update(op="call_module", target="head"),
        "reads nothing",
    ),
    "ties before what they are tied to": (
        lambda m, _: m["tensors"].insert(
            0, {"name": "x", "alias_of": "first.weight", "persistent": True}
        ),
        "not seen before",
    ),
    "too many arguments": (
        lambda m, _: called(m, "gelu")["args"]["tuple"].extend([1, 2]),
        "other arguments",
    ),
    "an unknown keyword": (
        lambda m, _: called(m, "gelu").update(kwargs={"dict": [["how", "none"]]}),
        "other arguments",
    ),
    "a number for a text": (
        lambda m, _: called(m, "gelu").update(kwargs={"dict": [["approximate", 1]]}),
        "approximate",
    ),
    "a text for a tensor": (
        lambda m, _: called(m, "gelu")["args"].update(tuple=["x"]),
        "not 'x'",
    ),
    "another shape": (
        lambda m, _: called(m, "gelu")["meta"]["val"].update(shape=[2, 8]),
        "manifest says",
    ),
    "terabytes": (
        lambda m, _: node_of(m, "placeholder")["meta"]["val"].update(shape=[2**44, 5]),
        "manifest says|cannot be computed",
    ),
    "more than an integer": (
        lambda m, _: called(m, "gelu")["args"]["tuple"].__setitem__(0, 10**40),
        "10000|belongs",
    ),
    "a stride that leaves gaps": (
        lambda m, _: m["tensors"][0].update(stride=[2**47]),
        "differ in rank",
    ),
    "an unknown key": (lambda m, _: m.update(more=1), "more"),
    "another digest": (lambda m, _: m["tensors"][0].update(digest="0" * 64), "digest"),
    "a mask of another parameter": (
        lambda m, _: _user(m)["masks"]["dict"].append(["first.weight", {"tuple": [None, None]}]),
        "masks",
    ),
}


def _user(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["user"]["dict"])


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_together_is_refused(what: str, tmp_path: Path) -> None:
    change, message = BROKEN[what]
    error = refused(tmp_path, change)
    assert re.search(message, str(error)), str(error)


def test_powers_and_rounding_that_never_end_are_refused(tmp_path: Path) -> None:
    for target, args in (("operator.pow", [9, 10**9]), ("builtins.round", [5, -(10**9)])):

        def change(
            manifest: dict[str, Any], _: str, target: str = target, args: list[int] = args
        ) -> None:
            node = {
                "op": "call_function",
                "name": "big",
                "target": target,
                "args": {"tuple": args},
                "kwargs": {"dict": []},
                "meta": {"val": 1},
            }
            manifest["graph"]["nodes"].insert(0, node)

        refused(tmp_path, change)


def test_nesting_bombs_are_refused(tmp_path: Path) -> None:
    program("mlp").save(tmp_path / "a")
    for bomb in ("[" * 100_000, '{"a":' * 100_000, '{"format": "fxcompress", "version": 2, "g": ['):
        (tmp_path / "a" / "fxcompress.json").write_text(bomb)
        with pytest.raises(LoadError):
            fx.load(tmp_path / "a")


def test_a_change_of_nothing_loads(tmp_path: Path) -> None:
    program("mlp").save(tmp_path / "a.fxc")
    change_manifest(tmp_path / "a.fxc", lambda _: None)
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(fx.load(tmp_path / "a.fxc")(x), program("mlp")(x))
