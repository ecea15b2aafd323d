"""Whatever stands in a file, reading it runs nothing: it gives a right program, or a LoadError."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crafted_nodes import Craft, Node, node_of, refused, wrapped
from fxcompress.errors import LoadError
from fxcompress.io.operators import asserts, function_named, only_computes

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
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "executed"
    (tmp_path / "hostile.py").write_text(f"open({str(flag)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    refused(tmp_path, CODE[where])
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
def test_a_call_reaches_no_file_and_no_other_namespace(target: str, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any], _: str) -> None:
        node_of(manifest, "call_function").update(target=target, **REACHES[target])

    error = refused(tmp_path, change)
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
