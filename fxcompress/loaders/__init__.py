"""Models by name: what the command line, examples and benchmarks take.

====================================  ==========================================================
``torchvision:resnet18``              a torchvision model, random weights
``timm:vit_tiny_patch16_224``         a timm model, random weights
``hf:DIRECTORY[#AutoClass]``          a Hugging Face model; random weights if only a config is there
``package.module:factory``            what the function returns: a model, or it with its inputs
``file.py:factory``                   the same from a file
``model.pt2``                         a file of `torch.export.save`
``small.fxc``, or a directory         a program of ours
====================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from fxcompress.arguments import FilePath, Holds, Seed, checked
from fxcompress.capture import Source
from fxcompress.errors import LoadError
from fxcompress.loaders.code import Made, from_factory, functions_of
from fxcompress.loaders.data import load_task
from fxcompress.loaders.huggingface import from_huggingface
from fxcompress.loaders.inputs import Arguments, parse_inputs
from fxcompress.loaders.weights import load_weights
from fxcompress.loaders.zoo import from_timm, from_torchvision
from fxcompress.program import Program
from fxcompress.program import load as load_program

__all__ = ["Loaded", "load_model", "load_task", "parse_inputs"]

_SCHEMES: Mapping[str, Callable[[str], Made]] = {
    "hf": from_huggingface,
    "timm": from_timm,
    "torchvision": from_torchvision,
}
_PROGRAMS = (".fxc", ".safetensors")
_FORMS = (
    "torchvision:NAME, timm:NAME, hf:DIRECTORY, package.module:factory, file.py:factory, "
    "a .pt2 file or a saved program"
)


Spec = Annotated[str, Holds("that names a model", lambda text: text and "\0" not in text)]


@dataclass(frozen=True)
class Loaded:
    """A model with example inputs, ready for `fxcompress.compile`.

    Attributes:
        model: The model, or the path of its ``.pt2`` file.
        args: Example inputs by position; empty where the model brings its own.
        kwargs: Example inputs by keyword.
        label: What to call it.
        program: The program, if it is a saved one; `model` is its module.
    """

    model: Source
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    program: Program | None = None


@checked(LoadError)
def load_model(
    spec: Spec,
    inputs: Sequence[str] = (),
    *,
    weights: FilePath | None = None,
    seed: Seed = 0,
    trust: bool = False,
) -> Loaded:
    """Load a model and make example inputs for it.

    Args:
        spec: One of the forms above.
        inputs: ``[name=]SHAPE[:dtype]`` each, instead of the model's own.
        weights: A state dict to load into the model.
        seed: For random weights and inputs; torch's own generator is as before after.
        trust: Let the Python code beside a Hugging Face model run, and a saved program call
            operators of any package.

    Raises:
        LoadError: There is no such model, or it cannot be made, or nobody says what it takes.

    Example:
        >>> load_model("torch.nn:Identity", ["2x4"]).args[0].shape
        torch.Size([2, 4])
    """
    given = parse_inputs(inputs, seed)
    path = Path(spec)
    if path.suffix in _PROGRAMS or path.is_dir():
        return _checked(_program(spec, given, trust), weights)
    if path.suffix == ".pt2":
        return _checked(Loaded(path, *given, label=spec), weights)
    if path.suffix == ".onnx":
        raise LoadError(f"{spec} is an ONNX file, not a model; only check and bench take those")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model, own = _make(spec, trust)
    args, kwargs = given if any(given) else own
    if not args and not kwargs:
        raise LoadError(
            f"{spec} does not say what it takes; give inputs (--input SHAPE) for each, or let the "
            "factory return (model, args)"
        )
    return _checked(Loaded(model.eval(), args, kwargs, spec), weights)


def _make(spec: str, trust: bool) -> Made:
    scheme, _, rest = spec.partition(":")
    if scheme in _SCHEMES:
        if not rest:
            raise LoadError(f"{spec!r} names no model; write {scheme}:NAME")
        return from_huggingface(rest, trust) if scheme == "hf" else _SCHEMES[scheme](rest)
    if spec.endswith(".py"):
        found = functions_of(Path(spec))
        hint = f"; it has {', '.join(found[:5])}" if found else ""
        raise LoadError(f"which function of {spec} makes the model? write {spec}:factory{hint}")
    if ":" not in spec:
        raise LoadError(f"{spec!r} is no model; give {_FORMS}")
    return from_factory(spec)


def _program(spec: str, given: Arguments, trust: bool) -> Loaded:
    program = load_program(spec, allow=("*",) if trust else ())
    if any(given):
        program = replace(program, args=given[0], kwargs=given[1])
    return Loaded(program.module, program.args, program.kwargs, spec, program)


def _checked(loaded: Loaded, weights: str | PathLike[str] | None) -> Loaded:
    if weights is None:
        return loaded
    if not isinstance(loaded.model, nn.Module) or loaded.program is not None:
        raise LoadError(f"{loaded.label} holds its own weights; leave the other ones out")
    load_weights(loaded.model, Path(weights))
    return loaded
