"""What can be exported: a module, its example inputs and the dimensions that may vary.

A `fxcompress.program.Program` fits the `Exportable` protocol as it is. For a model that was never
compiled (the dense one in a comparison, say) there is `Example`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.ambient import EXCLUSIVE
from fxcompress.arguments import Checked
from fxcompress.capture.tracing import evaluating
from fxcompress.errors import ExportError
from fxcompress.export.onnx.names import input_names, named_outputs, unique_names
from fxcompress.graph.lazy import READ_LAZILY, is_lazy
from fxcompress.graph.state import copies, forked, preserved


class Exportable(Protocol):
    """A module with example inputs; ``dynamic[i]`` names the varying dims of the i-th tensor."""

    @property
    def module(self) -> nn.Module:
        """Called as ``module(*args, **kwargs)``."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional example inputs, possibly nested."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Example inputs by keyword."""

    @property
    def dynamic(self) -> Sequence[Mapping[int, str]]:
        """For each tensor of the flattened ``(args, kwargs)``: ``{dim: name}``, empty if static."""


@dataclass(frozen=True)
class Example(Checked):
    """A plain module made exportable.

    Example:
        >>> dense = Example(nn.Linear(4, 2), (torch.zeros(2, 4),), dynamic=({0: "batch"},))
        >>> inputs_of(dense).names
        ('input',)
    """

    error: ClassVar = ExportError

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Sequence[Mapping[int, str]] = ()


@dataclass(frozen=True)
class Inputs:
    """The tensors among a program's example inputs, with their names and varying dimensions."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    dynamic: tuple[Mapping[int, str], ...]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    def sizes(self) -> dict[str, int]:
        """The example's size of every named dimension."""
        sizes: dict[str, int] = {}
        for name, tensor, dims in zip(self.names, self.tensors, self.dynamic, strict=True):
            for dim, label in dims.items():
                if sizes.setdefault(label, tensor.shape[dim]) != tensor.shape[dim]:
                    raise ExportError(
                        f"dimension {label!r} is {sizes[label]} in one input and "
                        f"{tensor.shape[dim]} in input {name!r} (dim {dim}); "
                        "give the example inputs one size, or the dimensions two names"
                    )
        return sizes

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` like the example's, with these tensors in place of its own."""
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


def inputs_of(program: Exportable) -> Inputs:
    """Flatten a program's example inputs; the tensors come detached and on the CPU.

    Raises:
        ExportError: There is no tensor among the inputs, or ``dynamic`` does not fit them.
    """
    args, kwargs = tuple(program.args), dict(program.kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    names = input_names(program.module, args, kwargs)
    found = [
        (name, leaf.detach().cpu())
        for name, leaf in zip(names, leaves, strict=True)
        if isinstance(leaf, Tensor)
    ]
    if not found:
        raise ExportError("the example inputs hold no tensor; pass the inputs the model is run on")
    dynamic = tuple(program.dynamic) or ({},) * len(found)
    if len(dynamic) != len(found):
        raise ExportError(
            f"`dynamic` describes {len(dynamic)} tensors, the example inputs hold {len(found)} "
            f"({', '.join(name for name, _ in found)}); give one mapping a tensor, {{}} if static"
        )
    for (name, tensor), dims in zip(found, dynamic, strict=True):
        if any(not 0 <= dim < tensor.ndim for dim in dims):
            raise ExportError(
                f"`dynamic` names dims {sorted(dims)} of input {name!r}, "
                f"whose shape is {tuple(tensor.shape)}"
            )
    tensors = tuple(tensor for _, tensor in found)
    return Inputs(unique_names([name for name, _ in found]), tensors, dynamic, tuple(leaves), spec)


@contextmanager
def inference_module(program: Exportable) -> Iterator[nn.Module]:
    """The program's module on the CPU and in evaluation mode; its own state comes back after.

    A module that lives elsewhere is copied. The mode of every submodule, what its calls write to
    and the global random generators are restored, also when the body raises. One thread at a time:
    it may be one program whose modes two threads would set.
    """
    with EXCLUSIVE:
        module = _on_cpu(program.module)
        with evaluating(module), torch.no_grad(), preserved(module), forked(module):
            yield module


def run_module(module: nn.Module, inputs: Inputs, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run a module on copies of flattened tensors and name the tensors it returns; every run starts
    from the same state, as a file's does.

    Raises:
        ExportError: The module refuses the tensors; its own error is in the message.
    """
    args, kwargs = inputs.arguments(copies(tensors))
    try:
        with preserved(module):
            result = module(*args, **kwargs)
    except Exception as error:
        raise failure_on(inputs, tensors, error) from error
    return named_outputs(result, taken=inputs.names)


def failure_on(inputs: Inputs, tensors: Sequence[Tensor], error: Exception) -> ExportError:
    """What to say of a module that raised an error."""
    shapes = ", ".join(
        f"{name} {tuple(tensor.shape)}" for name, tensor in zip(inputs.names, tensors, strict=True)
    )
    return ExportError(
        f"the module itself fails on the inputs {shapes}: {type(error).__name__}: {error}"
    )


def _on_cpu(module: nn.Module) -> nn.Module:
    """The module itself if it is on the CPU, a copy there if not."""
    state = itertools.chain(module.parameters(), module.buffers())
    devices = {tensor.device.type for tensor in state}
    if is_lazy(module):
        raise ExportError(
            f"the values of the module's parameters {READ_LAZILY}, and an export needs them all"
        )
    if "meta" in devices:
        raise ExportError("the module has parameters on the meta device; load its weights first")
    return module if devices <= {"cpu"} else copy.deepcopy(module).cpu()
