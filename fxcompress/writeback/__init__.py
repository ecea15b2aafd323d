"""Write a smaller graph back into the user's own class: the same class, smaller parameters, mended attributes.

The result is only handed out when it computes what the graph computes and torch.export takes it
again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import fx, nn

from fxcompress.canonicalize import canonicalize
from fxcompress.capture import DynamicSpec, capture
from fxcompress.errors import CaptureError, FxCompressError, WriteBackError
from fxcompress.graph import CapturedModule, dynamic_dims, is_tensor
from fxcompress.writeback.attention import rescale_queries
from fxcompress.writeback.attributes import Decision, decisions
from fxcompress.writeback.configs import mend_configs
from fxcompress.writeback.evidence import Evidence, gather
from fxcompress.writeback.gate import Gate, Verdict
from fxcompress.writeback.layers import mend_layer
from fxcompress.writeback.reads import attributes_read
from fxcompress.writeback.refusal import explain
from fxcompress.writeback.transplant import drop_unread, transplant

__all__ = ["write_back"]

Model = TypeVar("Model", bound=nn.Module)

_TRIES = 96
_RESCALINGS = 3


def write_back(
    module: CapturedModule, original: Model, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Model:
    """A new instance of the class of `original` that computes what `module` does.

    Args:
        module: What passes made of the capture of `original`, finalised.
        original: The dense model. It is not changed.
        args: Example inputs by position.
        kwargs: Example inputs by name.

    Returns:
        A copy of `original` with the parameters of `module` and attributes to match; device, modes
        and
        ``requires_grad`` are those of `original`.

    Raises:
        WriteBackError: The class cannot hold the smaller parameters; the message names the
            attribute or line.
    """
    _refuse_reparametrized(module)
    given = tuple(args), dict(kwargs)
    dynamic = _dynamic(module)
    dense = _dense(original, given, dynamic)
    result = transplant(module, original, dense)
    drop_unread(result, module, dense)
    layers = _mend_layers(result, module)
    evidence = gather(dense, module)
    found = decisions(result, evidence, layers)
    read = attributes_read(original, *given) if found else frozenset()
    gate = Gate(module, *given)
    verdict = _settle(result, gate, found, read, dynamic)
    if not verdict.ok:
        raise WriteBackError(explain(result, verdict, module, evidence, given, dynamic))
    mend_configs(result, original)
    _export_again(result, given, dynamic)
    return result


def _refuse_reparametrized(module: CapturedModule) -> None:
    for node in module.graph.find_nodes(op="call_module"):
        raise WriteBackError(
            f"a parameter is still read through the module '{node.target}'; call program.finalize() first"
        )


def _dense(original: nn.Module, given: Any, dynamic: DynamicSpec) -> CapturedModule:
    if not isinstance(original, nn.Module):
        raise WriteBackError(
            f"cannot write into a {type(original).__name__}; give the torch.nn.Module that was compiled"
        )
    try:
        return canonicalize(capture(original, *given, dynamic).module)
    except CaptureError as error:
        raise WriteBackError(
            f"{type(original).__name__} does not take the program's example inputs; "
            f"give the model that was compiled, dense. {error}"
        ) from error


def _dynamic(module: CapturedModule) -> DynamicSpec:
    """What to ask of a capture so that it is as free as `module`."""
    inputs = (node for node in module.graph.find_nodes(op="placeholder") if is_tensor(node))
    free = {index: sorted(dynamic_dims(node)) for index, node in enumerate(inputs)}
    axes = {axis for some in free.values() for axis in some}
    if not axes:
        return None
    if axes == {0}:
        return "batch"
    # One name for each axis of one size would tie what the model may leave untied.
    return {
        index: {axis: f"size_{index}_{axis}" for axis in some}
        for index, some in free.items()
        if some
    }


def _mend_layers(result: nn.Module, module: CapturedModule) -> list[nn.Module]:
    """Mend torch's own layers; gives those back whose class is known."""
    consumers: dict[str, tuple[Any, ...]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            for user in node.users:
                consumers.setdefault(str(node.target), _complete(user))
    known = []
    for path, layer in result.named_modules():
        consumer = consumers.get(f"{path}.weight", ())
        if mend_layer(layer, consumer):
            known.append(layer)
    return known


def _complete(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.args)


def _settle(
    result: nn.Module,
    gate: Gate,
    found: list[Decision],
    read: frozenset[tuple[str, str]],
    dynamic: DynamicSpec,
) -> Verdict:
    """Try the explanations of each attribute, best ones first, until the model agrees with the graph."""
    open_ = [decision for decision in found if decision.touches(read)]
    for decision in found:
        if decision not in open_ and decision.firm:
            decision.apply(result, 0)
    first: Verdict | None = None
    near: list[tuple[int, ...]] = []
    for combination in _combinations([len(decision.options) for decision in open_]):
        _apply(result, open_, combination)
        verdict = gate.measure(result)
        if verdict.ok:
            return verdict
        if verdict.near:
            near.append(combination)
        first = first or verdict
    assert first is not None
    for combination in near[:_RESCALINGS]:
        _apply(result, open_, combination)
        if _rescaled(result, gate, dynamic):
            verdict = gate.measure(result)
            return verdict
    _apply(result, open_, near[0] if near else (0,) * len(open_))
    return gate.measure(result)


def _apply(result: nn.Module, open_: list[Decision], combination: tuple[int, ...]) -> None:
    for decision, option in zip(open_, combination, strict=True):
        decision.apply(result, option)


def _combinations(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Index tuples below `counts`, those of the smallest sum first, up to a limit."""
    start = (0,) * len(counts)
    heap, seen = [(0, start)], {start}
    for _ in range(_TRIES):
        if not heap:
            return
        total, current = heapq.heappop(heap)
        yield current
        for position, count in enumerate(counts):
            if current[position] + 1 < count:
                following = (*current[:position], current[position] + 1, *current[position + 1 :])
                if following not in seen:
                    seen.add(following)
                    heapq.heappush(heap, (total + 1, following))


def _rescaled(result: nn.Module, gate: Gate, dynamic: DynamicSpec) -> bool:
    args, kwargs = gate.inputs[0]
    try:
        again = canonicalize(capture(result, args, kwargs, dynamic).module)
    except CaptureError:
        return False  # not the right attributes; the caller tries others
    return rescale_queries(result, again, gate.graph, args, kwargs)


def _export_again(result: nn.Module, given: Any, dynamic: DynamicSpec) -> None:
    try:
        capture(result, *given, dynamic)
    except FxCompressError as error:
        raise WriteBackError(
            f"{type(result).__name__} computes the right numbers with the smaller parameters, but torch.export "
            f"refuses it now; use program.module instead. {error}"
        ) from error
