"""Why a class cannot hold the smaller parameters, in words: the line, the module, the attribute."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import fxcompress.errors
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import DynamicSpec, capture
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.state import forked, preserved
from fxcompress.writeback.evidence import Evidence, integers, module_path
from fxcompress.writeback.gate import Verdict, evaluating

_LIBRARIES = tuple(
    f"{Path(file).parent}{os.sep}" for file in (torch.__file__, fxcompress.errors.__file__)
)
_WAY_OUT = (
    "the graph itself is right and remains available as program.module; or exclude the layers in "
    "question from pruning (exclude=[...]), or make the line follow the shapes"
)


def explain(
    result: nn.Module,
    original: nn.Module,
    verdict: Verdict,
    wanted: CapturedModule,
    evidence: Evidence,
    dynamic: DynamicSpec,
    given: Any,
) -> str:
    """The message for a candidate that did not pass a gate."""
    name = type(result).__name__
    if verdict.failure is not None:
        path = _failing_module(result, given)
        lines = [f"{name} does not run with the smaller parameters: {_first_line(verdict.failure)}"]
        lines += [f"  at {line}" for line in _user_lines(verdict.failure)]
    else:
        path, reason = _first_difference(result, wanted, given, dynamic)
        lines = [
            f"{name} runs with the smaller parameters but gives other numbers than the graph: "
            f"relative error {verdict.error:.2g}, allowed {verdict.tolerance:.2g}",
            *reason,
        ]
    if path is not None:
        module = result.get_submodule(path)
        lines.append(
            f"  in the module '{path}' ({type(module).__name__})" if path else f"  in {name} itself"
        )
        lines += [
            f"  {words}" for words in _conflicts(original.get_submodule(path), path, evidence)
        ]
    return "\n".join([*lines, f"  {_WAY_OUT}"])


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _user_lines(error: Exception) -> Iterator[str]:
    """The innermost line of the traceback outside torch and this package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARIES):
            yield f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
            return


def _failing_module(result: nn.Module, given: Any) -> str | None:
    """The innermost module of a class of the user's in whose forward the exception was raised."""
    running: list[str] = []
    hooks = []
    for path, module in result.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: running.append(path)))
        hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        with torch.no_grad(), evaluating(result), preserved(result), forked(result):
            result(*given[0], **given[1])
    except Exception:  # the same failure as before; now it is known where
        return running[-1] if running else None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _first_difference(
    result: nn.Module, wanted: CapturedModule, given: Any, dynamic: DynamicSpec
) -> tuple[str | None, list[str]]:
    """Where the class's graph first departs from the one it should have."""
    try:
        found = canonicalize(capture(result, given[0], given[1], dynamic).module)
    except CaptureError:
        return None, []
    for node, words in _differences(found, wanted):
        return module_path(node), [f"  {words}", *(f"  at {line}" for line in _lines_of(node))]
    return None, []


def _lines_of(node: fx.Node) -> Iterator[str]:
    """The user's line that made the node."""
    lines = str(node.meta.get("stack_trace", "")).strip().splitlines()
    for position in range(len(lines) - 1, -1, -1):
        line = lines[position].strip()
        if line.startswith("File ") and not any(library in line for library in _LIBRARIES):
            code = lines[position + 1].strip() if position + 1 < len(lines) else ""
            yield f"{line.removeprefix('File ')}: {code}"
            return


def _conflicts(module: nn.Module, path: str, evidence: Evidence) -> Iterator[str]:
    """Attributes of this module for which its own operations ask for several values at once."""
    findings = [f for f in evidence.get(path, {}).values() if f.rank == 0 and f.node]
    for name, value in vars(module).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            continue
        asked = {f.new: f.node for f in findings if f.old == value}
        if len(asked) > 1 and set(asked) != {value}:
            wishes = ", ".join(f"{new} (at {node})" for new, node in sorted(asked.items()))
            yield (
                f"its attribute '{name}' was {value}, and the graph asks for {wishes}: "
                "one number cannot be all"
            )


def _differences(found: CapturedModule, wanted: CapturedModule) -> Iterator[tuple[fx.Node, str]]:
    """The nodes of `found` that are called otherwise in `wanted`, and how."""
    twins = {node.name: node for node in wanted.graph.nodes}
    for node in found.graph.nodes:
        twin = twins.get(node.name)
        if node.op != "call_function" or twin is None:
            continue
        if twin.target != node.target:
            yield node, f"it calls {node.target} where the graph calls {twin.target}"
        elif (node.args, node.kwargs) != (twin.args, twin.kwargs):
            mine, theirs = dict(_numbers(node)), dict(_numbers(twin))
            changed = [k for k in mine if k in theirs and mine[k] != theirs[k]]
            if changed:
                has = ", ".join(str(mine[key]) for key in changed)
                needs = ", ".join(str(theirs[key]) for key in changed)
                yield node, f"it calls {node.target} with {has} where the graph has {needs}"


def _numbers(node: fx.Node) -> Iterator[tuple[tuple[Any, ...], float]]:
    yield from integers((node.args, node.kwargs))
    for index, value in enumerate(node.args):
        if isinstance(value, float):
            yield (0, index), value
    for key, value in node.kwargs.items():
        if isinstance(value, float):
            yield (1, key), value
