"""Checkpoints as Hugging Face writes them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.capture.checkpoint import INDEX

LITERAL = "multi_query_attention"
"""It reads heads by an index that its forward writes out."""


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Each tensor under its first name, as Hugging Face saves them."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    first = {name: t for name, t in state.items() if names.setdefault(id(t), name) == name}
    return {name: tensor.detach().contiguous() for name, tensor in first.items()}


def stored(model: nn.Module, folder: Path, parts: int = 1) -> Path:
    """A checkpoint of several files with an index, or of one."""
    folder.mkdir()
    state = state_of(model)
    where = {name: f"model-{index % parts}.safetensors" for index, name in enumerate(state)}
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, folder / file)
    if parts > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def reloaded(program: fx.Program, path: Path) -> fx.Program:
    program.save(path)
    return fx.load(path)
