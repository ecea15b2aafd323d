"""What a ``.pt2`` file holds, looked at before torch.export reads it.

A ``.pt2`` file is code, as a Python file is: torch unpickles what its configuration says, loads
compiled libraries, and evaluates its expressions. What needs any of these is refused unless the
caller trusts the file. That keeps pickles and libraries from running; it does not make a file of
someone else's harmless, as torch.export itself was not built for such files.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import math
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.export.pt2_archive._package import PT2ArchiveReader

from fxcompress.errors import CaptureError

_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/", "extra/", "models/")
_WEIGHTS, _CONSTANTS, _INPUTS = "data/weights/", "data/constants/", "data/sample_inputs/"
_CONFIGS = ("_weights_config.json", "_constants_config.json")
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.Name),
    *(
        ast.Constant,
        ast.operator,
        ast.unaryop,
        ast.boolop,
        ast.cmpop,
        ast.Load,
        ast.Tuple,
        ast.keyword,
    ),
)


def refuse_code(path: Path) -> None:
    """Refuse an archive that holds pickles, compiled libraries or expressions that are code.

    Raises:
        CaptureError: It does; the message says where, and how to open it even so.
    """
    try:
        reader = PT2ArchiveReader(str(path))
        found = next(_code_in(reader), None)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise CaptureError(
            f"{path} is not an exported program ({type(error).__name__}: {reason}); write one with "
            "torch.export.save(torch.export.export(model, args), path)"
        ) from error
    if found is not None:
        raise CaptureError(
            f"{path} holds {found}, which can run any code when it is opened; if you trust who "
            "made it, say trust=True (--trust on the command line), or save the model again with "
            "torch.export.save"
        )


def _code_in(reader: PT2ArchiveReader) -> Iterator[str]:
    names = reader.get_file_names()
    if "archive_format" not in names:
        yield "weights of an old format, which are pickles"
    for name in names:
        if name.startswith((_WEIGHTS, _CONSTANTS)):
            yield from _pickles(reader, name)
        elif name.startswith(_INPUTS):
            yield from _unsafe_inputs(reader, name)
        elif name.startswith("models/"):
            yield from _hooks(json.loads(reader.read_bytes(name)))
        elif not name.startswith(_PLAIN):
            yield f"the file {name}, which may be a compiled library"


def _pickles(reader: PT2ArchiveReader, name: str) -> Iterator[str]:
    if name.endswith(_CONFIGS):
        for key, entry in json.loads(reader.read_bytes(name))["config"].items():
            if entry["use_pickle"] is not False or entry["path_name"].startswith(
                ("custom_obj", "opaque_obj")
            ):
                yield f"the value of {key!r} as a pickle"
    elif name.endswith((".pt", ".pkl")):
        yield f"the pickle {name}"


def _unsafe_inputs(reader: PT2ArchiveReader, name: str) -> Iterator[str]:
    """Torch falls back to running a pickle of inputs that are more than plain tensors."""
    content = reader.read_bytes(name)
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        yield f"example inputs as a pickle of more than tensors ({name})"


def _hooks(data: Any) -> Iterator[str]:
    """Expressions that are evaluated, functions that are looked up, modules that are imported."""
    todo = [data]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            if isinstance(text := one.get("expr_str"), str) and not _is_formula(text):
                yield f"the expression {text[:80]!r}"
            name = one.get("target") if "inputs" in one else None
            if isinstance(name, str) and not _is_operator(name):
                yield f"a call of {name[:80]!r}"
            todo += one.values()
        elif isinstance(one, list):
            todo += one
        elif isinstance(one, str) and ("default_factory_module" in one or "__enum__" in one):
            yield "containers that name functions or enums of other modules"


def _is_formula(text: str) -> bool:
    """Whether an expression is arithmetic on symbols, with functions called by plain names."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and _is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    """A name is no builtin; only classes such as Symbol and Max are called; texts are names."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id[0].isupper()
    if isinstance(node, ast.Name):
        return node.id[0] != "_" and not hasattr(builtins, node.id)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or _is_word(node.value)
    return True


def _is_word(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*|-?[0-9.]+", value) is not None


def _is_operator(name: str) -> bool:
    """Whether torch finds an operator, or a function of numbers, under this name."""
    head, *parts = name.split(".")
    if head in ("_operator", "math") and len(parts) == 1:
        found = getattr(operator if head == "_operator" else math, parts[0], None)
        return callable(found) and parts[0] not in ("methodcaller", "attrgetter", "call")
    if head == "torch" and parts[:1] == ["ops"] and len(parts) >= 3:
        found = torch.ops
        for part in parts[1:]:
            found = getattr(found, part, None)
        kinds = (OpOverload, OpOverloadPacket, torch._ops.HigherOrderOperator)
        return isinstance(found, kinds) and "file" not in name
    return (
        head == "torch"
        and len(parts) == 1
        and (parts[0].startswith("sym_") or parts[0] == "_assert")
    )
