"""Fold what a parameter is read through (a mask, a gate, a projection) into the parameter itself.

Afterwards the graph holds plain parameters again and computes what it computed before.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor, names_of, replace_tensor


def finalize(module: CapturedModule) -> CapturedModule:
    """The same function with every reparametrised parameter computed once and for all.

    Args:
        module: It is not changed; what has no reparametrisation is shared with the result.

    Raises:
        PlanError: A parameter is read through different modules in different places, or both
            through one and directly, so that no single value can replace it.
    """
    through = _reparametrized(module)
    if not through:
        return module
    new = clone_graph(module)
    names = names_of(new)
    values = {name: _value(module, nodes) for name, nodes in through.items()}
    nodes = {node.name: node for node in new.graph.nodes}
    for name, calls in through.items():
        _refuse_other_readers(module, name, calls)
        replace_tensor(new, names, name, values[name])
        for call in calls:
            twin = nodes[call.name]
            twin.replace_all_uses_with(twin.args[0])
            new.graph.erase_node(twin)
    for target in {str(call.target) for calls in through.values() for call in calls}:
        new.delete_submodule(target)
        _drop_if_empty(new, target.rpartition(".")[0])
    new.graph.lint()
    new.recompile()
    return new


def _reparametrized(module: CapturedModule) -> dict[str, list[fx.Node]]:
    """For each parameter, the nodes through which it is read."""
    found: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        name = parameter_of(node.args[0]) if node.op == "call_module" and node.args else None
        if name is not None:
            found.setdefault(name, []).append(node)
    return found


def _value(module: CapturedModule, calls: list[fx.Node]) -> Tensor:
    call = calls[0]
    source = call.args[0]
    assert isinstance(source, fx.Node)
    old = find_tensor(module, str(source.target))
    assert old is not None
    with torch.no_grad():
        value = module.get_submodule(str(call.target))(old)
    # A module may hand the parameter itself back; the result must not share its storage.
    return value.detach().clone()  # type: ignore[no-any-return]


def _refuse_other_readers(module: CapturedModule, name: str, calls: list[fx.Node]) -> None:
    tensor = find_tensor(module, name)
    for node in module.graph.nodes:
        if parameter_of(node) is None or find_tensor(module, str(node.target)) is not tensor:
            continue
        others = [user.name for user in node.users if user not in calls]
        if others or len({call.target for call in calls}) > 1:
            places = ", ".join(others or [call.name for call in calls])
            raise PlanError(
                f"{name} is read in several ways (at {places}), so its reparametrisation cannot be "
                "folded into one value; reparametrise every reader with the same module"
            )


def _drop_if_empty(module: CapturedModule, name: str) -> None:
    if (
        name
        and name in dict(module.named_modules())
        and not len(module.get_submodule(name)._modules)
    ):
        module.delete_submodule(name)
