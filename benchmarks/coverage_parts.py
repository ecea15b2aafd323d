"""What `coverage.py` finds out about one model; each part gives plain figures, and an error that it
raises is a result as well.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from coverage_case import RATIO, Case, Inputs, count, distance, timed
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fx
from fxcompress.capture import capture
from fxcompress.edit.rewrite import Kept, rewrite
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import dtype_of, is_tensor
from fxcompress.program import Program
from fxcompress.verify.masked import masked_forward

Figures = dict[str, Any]
DIRECTIONS = (".weight_v", "parametrizations.weight.original1")
THEIRS = "torch-pruning"
EVERY = fx.passes.RandomPruning(ratio=RATIO, round_to=1, seed=1)
EXACT = fx.passes.RandomPruning(ratio=RATIO, round_to=1, seed=2, exact_only=True)


def speed(case: Case) -> Figures:
    """CPU seconds of torch.export and of every stage of the compiler, in single precision."""
    program, small, stages = case.staged
    return {
        **{stage: round(seconds, 4) for stage, seconds in stages.items()},
        "nodes": len(program.module.graph.nodes),
        "reduction": 1 - count(small.module) / count(program.module),
    }


def exact(case: Case) -> Figures:
    """Whether half of the units can go, in double precision, at two and at three examples."""
    model, given = case.double()
    stages: dict[str, float] = {}
    program = timed(stages, "compile", lambda: fx.compile(model, *given))
    figures = _described(program)
    movable = [group for group in program.groups if not group.frozen and group.units > 1]
    if movable:
        figures |= _all_groups(case, program, given)
    if any(group.exact for group in movable):
        figures |= _exact_groups(case, program, model, given)
    return figures | {"compile": round(stages["compile"], 3)}


def _described(program: Program) -> Figures:
    frozen = [group for group in program.groups if group.frozen]
    return {
        "prunable": len(program.groups) - len(frozen),
        "inexact": sum(not group.frozen and not group.exact for group in program.groups),
        "frozen": dict(Counter(str(group.frozen) for group in frozen).most_common()),
        "widest": {g.name: g.units for g in sorted(frozen, key=lambda g: -g.units)[:8]},
        "unknown": {op: len(nodes) for op, nodes in program.analysis.coupling.unknown.items()},
        "single": _computes_in_single(program.module),
        "free_batch": all(0 in axes for axes in program.dynamic),
    }


def _computes_in_single(module: CapturedModule) -> bool:
    """Whether a model in double precision casts to single by itself: nothing agrees better."""
    tensors = (node for node in module.graph.nodes if is_tensor(node) and node.op != "get_attr")
    return any(dtype_of(node) == torch.float32 for node in tensors)


def _all_groups(case: Case, program: Program, given: Any) -> Figures:
    """Sizes with half of every group gone, and the distance to the reference that recomputes norms
    over the units that stay.
    """
    plan = EVERY.plan(program)
    coupling = program.analysis.coupling
    small = rewrite(program.module, coupling, plan).module
    figures: Figures = {
        "dense": count(program.module),
        "predicted": program.cost(plan.widths).params,
        "counted": count(small),
    }
    free = all(0 in axes for axes in program.dynamic)
    two = first_two(case.drawn(3)) if free else given
    choices = {one.group.factor: one.encoder for one in plan.projects}
    with torch.no_grad():
        found = small(*copied(two[0]), **copied(two[1]))
        expected = masked_forward(program.module, small, coupling, choices, *two)
    figures["norm_error"] = distance(found, expected)
    if free:
        figures["batch_error"] = _batch_error(small, two, case.drawn(3))
    return figures


def _batch_error(small: nn.Module, two: Inputs, three: Inputs) -> float:
    """Whether examples that were right in a batch of two come out the same in a batch of three."""
    with torch.no_grad():
        lesser, larger = (small(*copied(args), **copied(kwargs)) for args, kwargs in (two, three))
    return distance(cut_to(larger, lesser), lesser)


def first_two(inputs: Inputs) -> Inputs:
    """The first two examples of a batch."""
    cut: Inputs = pytree.tree_map_only(Tensor, lambda value: value[:2], inputs)
    return cut


def cut_to(values: Any, like: Any) -> Any:
    """The corner of every tensor that has the shape of its counterpart."""

    def corner(value: Any, other: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != other.dim():
            return value
        return value[tuple(slice(size) for size in other.shape)]

    return pytree.tree_map(corner, values, like)


def _exact_groups(case: Case, program: Program, model: nn.Module, given: Inputs) -> Figures:
    """Distances to the user's own model with zeros in place of the units that left, and to that
    model as it was: equality proves nothing where that is nothing.
    """
    done = rewrite(program.module, program.analysis.coupling, EXACT.plan(program))
    free = all(0 in axes for axes in program.dynamic)
    sets = [given, case.drawn(3)] if free else [given]
    with torch.no_grad():
        found = [done.module(*copied(args), **copied(kwargs)) for args, kwargs in sets]
        try:
            before = model(*copied(given[0]), **copied(given[1]))
        except RuntimeError:  # an eager kernel without double: torch.export takes another one
            model = capture(model, *given).module
            before = model(*copied(given[0]), **copied(given[1]))
        effect = distance(found[0], before)
        zero_masked(model, done.kept)
        expected = [model(*copied(args), **copied(kwargs)) for args, kwargs in sets]
    errors = [distance(a, b) for a, b in zip(found, expected, strict=True)]
    return {"error": max(errors), "errors": errors, "effect": effect}


def zero_masked(model: nn.Module, kept: Kept) -> None:
    """Set to zero, in place, every entry of a parameter that is not among those that stay.

    Buffers keep theirs: what a unit with zero weights does is undone by the zeros of its consumers,
    while a buffer may be what the model divides by. So is the direction of a weight norm divided by
    its own length: its scale takes the zeros.
    """
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, axes in kept.items():
            if name.endswith(DIRECTIONS):
                continue
            for dim, index in enumerate(axes):
                if index is not None and name in named:
                    gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
                    gone[index] = False
                    named[name].index_fill_(dim, gone.nonzero().flatten(), 0)


def copied(values: Any) -> Any:
    """Inputs that a model may write to."""
    return pytree.tree_map_only(Tensor, torch.clone, values)


def onnx(case: Case) -> Figures:
    """Export of the smaller program, and onnxruntime against it; where torch.onnx refuses it,
    whether the program before is refused as well.
    """
    dense, small, _ = case.staged
    start = time.process_time()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "program.onnx"
        try:
            fx.export.to_onnx(small, path)
        except fx.ExportError:
            refusal = _refusal(dense, path)
            if refusal is None:
                raise
            return {"dense": refusal}
        checked = fx.export.check(path, small)
    return {"error": checked.max_error, "seconds": round(time.process_time() - start, 2)}


def _refusal(program: Program, path: Path) -> str | None:
    try:
        fx.export.to_onnx(program, path)
    except fx.ExportError as error:
        return str(error).splitlines()[0]
    return None


def write_back(case: Case) -> Figures:
    """The user's own class with the smaller parameters; the compiler's own gate compares it."""
    _, small, _ = case.staged
    start = time.process_time()
    try:
        written = small.write_back(case.model)
    except fx.WriteBackError as error:
        return {"failed": type(error).__name__, "says": _without_advice(str(error))}
    return {"params": count(written), "seconds": round(time.process_time() - start, 2)}


def _without_advice(message: str) -> str:
    """What a class does wrong, with the line and the attributes, and without the ways out."""
    lines = [line.strip() for line in message.splitlines()]
    told = "; ".join(lines[:-1] if len(lines) > 1 else lines)
    return re.sub(r"\S*/site-packages/", "", told.replace('"', ""))[:700]


def torch_pruning(case: Case) -> Figures:
    """torch-pruning at the same ratio: L2, one shot, output layers listed, heads passed."""
    import torch_pruning as tp

    model, (args, kwargs) = case.model, case.inputs
    before = count(model)
    stages: dict[str, float] = {}
    pruner = timed(
        stages,
        "build",
        lambda: tp.pruner.BasePruner(
            model,
            kwargs or args,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=case.zoo.heads(case.name, model),
            num_heads=_heads(model),
            prune_num_heads=False,
            prune_head_dims=True,
        ),
    )
    timed(stages, "step", pruner.step)
    with torch.no_grad():
        model(*copied(args), **copied(kwargs))
    return {**{k: round(v, 4) for k, v in stages.items()}, "reduction": 1 - count(model) / before}


def _heads(model: nn.Module) -> Mapping[nn.Module, int]:
    """The projections of attention layers, with the number of heads that their layers state."""
    found: dict[nn.Module, int] = {}
    for layer in model.modules():
        heads = getattr(layer, "num_heads", None) or getattr(layer, "num_attention_heads", None)
        if not isinstance(heads, int):
            continue
        if isinstance(layer, nn.MultiheadAttention):
            found[layer] = heads
        for name, part in layer.named_children():
            if isinstance(part, nn.Linear) and name in (
                "qkv", "q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj",
            ):  # fmt: skip
                found[part] = heads
    return found


PARTS: Mapping[str, Callable[[Case], Figures]] = {
    "speed": speed,
    "onnx": onnx,
    "write back": write_back,
    "exact": exact,  # turns the model to double precision: after all that needs single
    THEIRS: torch_pruning,  # spoils the model: run on one of its own
}
