"""Whatever stands in a file, reading it runs nothing: it gives a right program, or a LoadError."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress as fx
from crafted import change_manifest, manifest_of, write_manifest
from fxcompress.errors import LoadError
from fxcompress.io.operators import asserts, function_named, only_computes
from programs import program

Node = dict[str, Any]
Craft = Callable[[dict[str, Any], str], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "a"
    program("mlp").save(path)
    return path


@pytest.fixture
def canary(tmp_path: Path, saved: Path) -> Craft:
    """Put code that would leave a file behind into a copy, load it, and look for the file."""
    flag = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(flag)!r}).touch()"

    def attempt(manifest: dict[str, Any], change: Craft) -> LoadError:
        target = tmp_path / "crafted"
        program("mlp").save(target)
        change(manifest, code)
        write_manifest(target, manifest)
        with pytest.raises(LoadError) as caught:
            fx.load(target)(torch.randn(2, 5, dtype=torch.float64))
        assert not flag.exists()
        return caught.value

    return attempt  # type: ignore[return-value]


def node_of(manifest: dict[str, Any], op: str) -> Node:
    return next(node for node in manifest["graph"]["nodes"] if node["op"] == op)


def called(manifest: dict[str, Any], part: str) -> Node:
    return next(node for node in manifest["graph"]["nodes"] if part in node["target"])


def leaf() -> Node:
    return {"type": None, "context": None, "children_spec": []}


def wrapped(kind: str, context: Any, **more: Any) -> Node:
    return {"type": kind, "context": context, "children_spec": [leaf()], **more}


CODE: dict[str, Craft] = {
    "placeholder target": lambda m, code: node_of(m, "placeholder").update(target=code),
    "placeholder default": lambda m, code: node_of(m, "placeholder").update(target=f"x={code}"),
    "placeholder comment": lambda m, code: node_of(m, "placeholder").update(
        target=f"x = [{code}] #"
    ),
    "input": lambda m, code: m["graph"]["inputs"].__setitem__(0, f"x={code}"),
    "node name": lambda m, code: node_of(m, "call_function").update(name=code),
    "keyword": lambda m, code: node_of(m, "call_function").update(
        kwargs={"dict": [[f"a={code}, b", 1]]}
    ),
    "attribute": lambda m, code: node_of(m, "get_attr").update(target=f'x"); {code}; ("'),
    "buffer": lambda m, code: m["tensors"][0].update(name=f'x"); {code}; ("'),
    "function": lambda m, code: node_of(m, "call_function").update(target=code),
    "eval": lambda m, code: node_of(m, "call_function").update(
        target="builtins.eval", args={"tuple": [code]}
    ),
    "method": lambda m, code: node_of(m, "call_function").update(op="call_method", target=code),
    "module": lambda m, code: node_of(m, "call_function").update(op="call_module", target=code),
    "output": lambda m, code: node_of(m, "output").update(target=code),
    "keyword of the inputs": lambda m, code: m["graph"]["in_spec"]["children_spec"].__setitem__(
        1, wrapped("builtins.dict", json.dumps([f"x': {code}, '"]))
    ),
    "comment above a node": lambda m, code: node_of(m, "call_function")["meta"].update(
        plain={"dict": [["stack_trace", f"\n{code}\n"]]}
    ),
    "enum": lambda m, code: m["graph"].update(
        out_spec=wrapped(
            "builtins.dict", json.dumps([{"__enum__": True, "fqn": "hostile:A", "name": "a"}])
        )
    ),
    "factory": lambda m, code: m["graph"].update(
        out_spec=wrapped(
            "collections.defaultdict",
            {
                "default_factory_module": "hostile",
                "default_factory_name": "A",
                "dict_context": ["a"],
            },
        )
    ),
    "class of the outputs": lambda m, code: m["graph"].update(
        out_spec=wrapped("hostile.A", "null", module="hostile")
    ),
    "small module": lambda m, code: m["modules"].append(
        {"name": "a", "kind": "hostile.A", "config": {"dict": []}}
    ),
}


@pytest.mark.parametrize("where", CODE)
def test_code_in_a_file_is_not_run(
    where: str, canary: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "executed"
    (tmp_path / "hostile.py").write_text(f"open({str(flag)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    canary(manifest_of(saved), CODE[where])
    assert "hostile" not in sys.modules


REACHES: dict[str, Node] = {
    "aten.from_file.default": {"args": {"tuple": ["/etc/passwd", True, 4]}},
    "aten.save.default": {"args": {"tuple": [1, "/tmp/x"]}},
    "aten.set_.source_Storage": {},
    "aten._reshape_alias.default": {},
    "aten.fbgemm_linear_fp16_weight.default": {},
    "aten.add.out": {},
    "builtins.open": {"args": {"tuple": ["/etc/passwd"]}},
    "torch.load": {"args": {"tuple": ["/etc/passwd"]}},
    "operator.methodcaller": {"args": {"tuple": ["tofile"]}},
    "os.system": {"args": {"tuple": ["true"]}},
    "prims.add.default": {},
    "aten.__class__.default": {},
    "load_library.x.default": {},
}


@pytest.mark.parametrize("target", REACHES)
def test_a_call_reaches_no_file_and_no_other_namespace(
    target: str, canary: Any, saved: Path
) -> None:
    def change(manifest: dict[str, Any], _: str) -> None:
        node_of(manifest, "call_function").update(target=target, **REACHES[target])

    error = canary(manifest_of(saved), change)
    assert target in str(error)


def test_an_allowed_operator_that_takes_text_takes_a_tensor_or_asserts() -> None:
    """Text beside a tensor is a mode, and text of an assertion is its message; a path is neither.

    An assertion without a tensor gives nothing back: all it can do is raise.
    """
    counts = {True: 0, False: 0}
    for name in torch._C._dispatch_get_all_op_names():
        base, _, overload = name.partition(".")
        if name.startswith("aten::"):
            packet = getattr(torch.ops.aten, base.removeprefix("aten::"))
            found = getattr(packet, overload or "default")
            counts[only_computes(found)] += 1
            kinds = {str(argument.type) for argument in found._schema.arguments}
            texts = any("str" in kind for kind in kinds)
            tensors = any("Tensor" in kind for kind in kinds)
            if only_computes(found) and texts and not tensors:
                assert asserts(found), name
                assert not found._schema.returns, name
            assert not (only_computes(found) and "file" in name), name
    assert min(counts.values()) > 900


@pytest.mark.parametrize("text", ["/dev/full", "%s %n {0}", ""])
def test_the_text_of_an_assertion_is_a_message_and_nothing_else(text: str) -> None:
    check: Any = function_named("aten._assert_scalar.default")
    assert check(True, text) is None
    with pytest.raises(RuntimeError) as caught:
        check(False, text)
    assert text in str(caught.value)


def test_other_namespaces_are_opened_by_name(tmp_path: Path) -> None:
    found: Any = function_named("prims.add.default", allow=("prims",))
    assert found is function_named("prims.add.default", allow=("prims.a*",))
    with pytest.raises(LoadError, match=r"allow=\('prims',\)"):
        function_named("prims.add.default", allow=("prim",))


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
def test_what_does_not_fit_together_is_refused(what: str, canary: Any, saved: Path) -> None:
    change, message = BROKEN[what]
    error = canary(manifest_of(saved), change)
    assert __import__("re").search(message, str(error)), str(error)


def test_powers_and_rounding_that_never_end_are_refused(saved: Path, canary: Any) -> None:
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

        canary(manifest_of(saved), change)


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
