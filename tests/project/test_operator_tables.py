"""No pass and no export lists operators: what they are is asked of the rules and the graph."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxcompress

ROOT = Path(fxcompress.__path__[0])
FILES = sorted(path for room in ("passes", "export") for path in (ROOT / room).rglob("*.py"))


def names_operator(node: ast.AST) -> bool:
    """Whether an expression is an ATen operator, or a text that names one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.startswith("aten::")
    if isinstance(node, ast.JoinedStr):
        return any(map(names_operator, node.values))
    path = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    return path.startswith(("aten.", "torch.ops."))


def tables(source: str) -> Iterator[int]:
    """The lines of collections that name two operators or more, or make such names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            entries: list[ast.AST] = list(node.elts)
        elif isinstance(node, ast.Dict):
            entries = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            entries = [node.key if isinstance(node, ast.DictComp) else node.elt] * 2
        else:
            continue
        if sum(map(names_operator, entries)) > 1:
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_a_pass_or_an_export_holds_a_table_of_operators(path: Path) -> None:
    assert list(tables(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        '("aten::add", "aten::mul")',
        "{aten.relu.default, aten.gelu.default}",
        '{"aten::relu": 1, "aten::gelu": 2}',
        'frozenset(f"aten::{name}" for name in names)',
        "[torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor]",
    ],
)
def test_a_table_is_seen(text: str) -> None:
    assert list(tables(text)) == [1]


def test_a_single_operator_is_no_table() -> None:
    assert list(tables("f((aten.add.Tensor, x), 'aten::mul')")) == []
