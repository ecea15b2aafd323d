"""Fold what a parameter is read through (a mask, a gate, a projection), or kept in (codes and
scales), into a plain parameter.

Afterwards the graph holds plain parameters again and computes what it computed before.
"""

from __future__ import annotations

from torch import Tensor, fx

from fxcompress.edit.reparametrize import given
from fxcompress.edit.store import unpack
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.parameters import Names, find_tensor, names_of, read_tensor, replace_tensor
from fxcompress.graph.through import keeps, module_calls


def finalize(module: CapturedModule) -> CapturedModule:
    """The same function in evaluation, with every parameter computed once and for all.

    Args:
        module: It is not changed; what is read and kept plainly is shared with the result.

    Raises:
        PlanError: A parameter is read through different modules in different places, or both
            through one and directly, so that no single value can replace it.
    """
    calls = module_calls(module)
    if not calls:
        return module
    new = clone_graph(module)
    names = names_of(new)
    for name, own in calls.items():
        if not keeps(own[0]):
            _fold(module, new, names, name, own)
        elif find_tensor(new, name) is None:  # it has not come with another name of it
            unpack(new, name)
    new.graph.lint()
    new.recompile()
    return new


def _fold(
    module: CapturedModule, new: CapturedModule, names: Names, name: str, calls: list[fx.Node]
) -> None:
    """Give the parameter the value that its module gives, and read it plainly."""
    _refuse_other_readers(module, name, calls)
    replace_tensor(new, names, name, _value(module, calls[0]))
    nodes = {node.name: node for node in new.graph.nodes}
    for call in calls:
        twin = nodes[call.name]
        twin.args[0].meta["val"] = twin.meta["val"]  # a projection gives another shape
        twin.replace_all_uses_with(twin.args[0])
        new.graph.erase_node(twin)
    for target in {str(call.target) for call in calls}:
        new.delete_submodule(target)
        _drop_if_empty(new, target.rpartition(".")[0])


def _value(module: CapturedModule, call: fx.Node) -> Tensor:
    source = call.args[0]
    assert isinstance(source, fx.Node)
    return given(module.get_submodule(str(call.target)), read_tensor(module, str(source.target)))


def _refuse_other_readers(module: CapturedModule, name: str, calls: list[fx.Node]) -> None:
    tensor = find_tensor(module, name)
    for node in module.graph.find_nodes(op="get_attr"):
        if find_tensor(module, str(node.target)) is not tensor:
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
