"""Weights from a file into a model, without running any code that the file may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fxcompress.errors import LoadError

_NESTED = ("state_dict", "model", "model_state_dict")
_SHOWN = 3


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (safetensors or a torch checkpoint) into `model`; every name must fit.

    Raises:
        LoadError: The file holds no state dict, or one of another model.
    """
    state = _read(path)
    own = model.state_dict()
    wrong = [
        *(f"{name} is missing in the file" for name in own.keys() - state.keys()),
        *(f"{name} is unknown to the model" for name in state.keys() - own.keys()),
        *(
            f"{name} is {list(state[name].shape)} in the file, {list(own[name].shape)} in the model"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise LoadError(
            f"{path} does not fit {type(model).__name__}: "
            f"{'; '.join(sorted(wrong)[:_SHOWN])}{more}; give the weights of this very model"
        )
    model.load_state_dict(state)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise LoadError(f"there is no file {path}; give a .safetensors file or a torch checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken archive fails as zip, as text, as pickle, by its version
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise LoadError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}: {reason}); "
            "save model.state_dict() with safetensors"
        ) from error
    return _state_dict(found, path)


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise LoadError(f"{path} holds no state dict; save model.state_dict() alone")
    return dict(found)
