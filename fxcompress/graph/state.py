"""Running a module without changing it: on copies of what its graph writes to, and with the global
random generators as they were afterwards.

Verification, calibration and checks of exported files run modules through `isolated`, so that a
moving average, a counter or a table with bounded rows is the same before and after. Every call
starts from the stored state: what is found does not depend on what was run before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from fxcompress.graph.aliasing import alias_classes, mutated_inputs
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.lazy import device_of_values, lazy_value
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor, names_of, replace_tensor, tensor_called
from fxcompress.graph.through import keeps
from fxcompress.graph.undeclared import written_unseen

Called = TypeVar("Called", bound=nn.Module)


def written_tensors(module: CapturedModule) -> frozenset[str]:
    """The parameters and buffers, by all their names, that a call of the module writes to.

    Found in the graph as it is: where schemas declare a write, where a composite operator writes
    without saying so, and wherever a module or a graph inside the graph is given a buffer.
    """
    readers = [node for node in module.graph.nodes if parameter_of(node) is not None]
    buffers = {n for n in readers if not isinstance(_tensor(module, n), nn.Parameter)}
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        found.update(mutated_inputs(node))
        if node.op == "call_module" or _holds_a_graph(node):
            found.update(node.all_input_nodes)
        else:
            found.update(written_unseen(module, node, buffers))
    if not found:
        return _buffers_of_modules(module)
    classes = alias_classes(module.graph)
    roots = {classes[node] for node in found}
    names = names_of(module)
    written = (names[str(node.target)] for node in readers if classes[node] in roots)
    return _buffers_of_modules(module).union(*written)


def isolated(module: CapturedModule, names: frozenset[str] | None = None) -> CapturedModule:
    """The module to be called without changing it.

    It shares every tensor that calls only read and has copies of the others, which every call
    finds as they were at first. A module that writes to nothing is given back itself.

    Args:
        module: The module.
        names: Its `written_tensors`, where they are known.
    """
    names = written_tensors(module) if names is None else names
    if not names:
        return module
    clone = clone_graph(module)
    kept = _copied(clone, names)

    def restore(_module: nn.Module, _args: Any) -> None:
        with torch.no_grad():
            for copy, value in kept:
                copy.copy_(value)

    clone.register_forward_pre_hook(restore)
    return clone


def run_alone(module: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the module gives, called on copies of the inputs without changing anything.

    Two such runs draw the same random numbers.
    """
    with forked(module):
        return isolated(module)(*copies(args), **copies(dict(kwargs)))


def copies(values: Any) -> Any:
    """Inputs that an in-place operation may write to."""
    return pytree.tree_map_only(Tensor, torch.clone, values)


@contextmanager
def evaluating(module: Called) -> Iterator[Called]:
    """What to call in place of a module in evaluation mode, so that it is not changed.

    A captured module is called in isolation. Of any other what its calls write to is not known: it
    is called itself, and its mode and its tensors are put back.
    """
    if isinstance(module, CapturedModule):
        yield isolated(clone_graph(module).eval() if module.training else module)  # type: ignore[misc]
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with preserved(module):
            yield module
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """A module, whose parameters and buffers have the same bits afterwards."""
    if isinstance(module, CapturedModule):
        named = ((name, find_tensor(module, name)) for name in written_tensors(module))
        state = list({id(t): t for _, t in named if t is not None}.values())
    else:
        state = list({id(t): t for t in chain(module.parameters(), module.buffers())}.values())
    before = [value.detach().clone() for value in state]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(state, before, strict=True):
                if not _same_bits(value, old):
                    value.copy_(old)


@contextmanager
def forked(*modules: nn.Module) -> Iterator[None]:
    """Random generators of the CPU and of the modules' devices: as they were, afterwards.

    Two runs, each in a fork of its own, draw the same numbers.
    """
    state = (t for m in modules for t in chain(m.parameters(), m.buffers()))
    devices = {value.device.index or 0 for value in state if value.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """The state of every generator that an operation on this device may draw from."""
    on_device = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *on_device)


def set_generator_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    """Put back what `generator_states` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first tensor is, or its lazy value is read."""
    for tensor in chain(module.parameters(), module.buffers()):
        device = tensor.device
        return device if lazy_value(tensor) is None else device_of_values(device)
    return torch.device("cpu")


def _tensor(module: CapturedModule, node: fx.Node) -> Tensor | None:
    return find_tensor(module, str(node.target))


def _holds_a_graph(node: fx.Node) -> bool:
    """Whether a node calls a graph inside the graph, whose writes no schema tells."""
    return (
        node.op == "call_function"
        and not isinstance(node.target, OpOverload)
        and any(n.op == "get_attr" and parameter_of(n) is None for n in node.all_input_nodes)
    )


def _buffers_of_modules(module: CapturedModule) -> frozenset[str]:
    """The buffers of modules that parameters are read through: a fake quantiser may move its range.
    What a parameter is kept in is only read.
    """
    names = names_of(module)
    calls = module.graph.find_nodes(op="call_module")
    called = {str(node.target) for node in calls if not keeps(node)}
    return frozenset[str]().union(
        *(
            names[f"{path}.{name}"]
            for path in called
            for name, _ in module.get_submodule(path).named_buffers()
        )
    )


def _copied(clone: CapturedModule, names: frozenset[str]) -> list[tuple[Tensor, Tensor]]:
    """Put copies in the place of tensors; give each with what it was copied from."""
    every, kept, done = names_of(clone), [], set[str]()
    for name in sorted(names):
        old = find_tensor(clone, name)
        if old is not None and name not in done:
            done |= every[name]
            replace_tensor(clone, every, name, old.detach().clone())
            new = tensor_called(clone, name)
            kept.append((new, old))
    return kept


def _same_bits(first: Tensor, second: Tensor) -> bool:
    same = (first == second) | ((first != first) & (second != second))
    return bool(same.all())
