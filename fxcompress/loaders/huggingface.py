"""Hugging Face models from a local directory: with its weights, or random from a config alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from fxcompress.errors import LoadError
from fxcompress.loaders.code import Made
from fxcompress.loaders.inputs import Arguments, example
from fxcompress.loaders.zoo import unbroken_torchvision

_BATCH, _TOKENS = 2, 16
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_SCALES = ("vision_config", "text_config")


def from_huggingface(spec: str, trust: bool = False) -> Made:
    """A model from ``DIRECTORY[#AutoClass]``, or from a name that is in the local cache.

    Without a class, the one that the config names is used. A directory without weights gives random
    ones.

    Args:
        spec: The directory, and the class.
        trust: Run the Python code that the directory holds, where its config asks for it.

    Raises:
        LoadError: Nothing of that name is here (nothing is downloaded), or there is no such class.
    """
    place, _, class_name = spec.partition("#")
    with unbroken_torchvision("transformers"):
        transformers = importlib.import_module("transformers")
        config = _config(transformers, place, trust)
        auto = _class(transformers, class_name, config)
        model = _made(auto, place, config, trust)
    _without_cache(model)
    return model, _dummy_inputs(model)


def _config(transformers: Any, place: str, trust: bool) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(
            place, local_files_only=True, trust_remote_code=trust
        )
    except (OSError, ValueError) as error:
        if Path(place).is_dir():
            raise LoadError(
                f"{place} has no config that transformers reads: {error}{_hint(error)}"
            ) from error
        raise LoadError(
            f"{place!r} is no directory and is not in the local cache of Hugging Face, and nothing "
            "is downloaded; pass a directory that holds config.json and the weights"
        ) from error


def _class(transformers: Any, name: str, config: Any) -> Any:
    names = [name] if name else [*(config.architectures or ()), "AutoModel"]
    for one in names:
        found = getattr(transformers, one, None)
        if hasattr(found, "from_pretrained"):
            return found
    raise LoadError(f"transformers has no model class {name!r}; try AutoModelForCausalLM, say")


def _made(auto: Any, place: str, config: Any, trust: bool) -> Any:
    folder = Path(place)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        if list(folder.glob("*.bin")):
            raise LoadError(
                f"{place} holds its weights as pickles (.bin), which are not read; convert them to "
                "safetensors with save_pretrained"
            )
        if hasattr(auto, "from_config"):
            return auto.from_config(config, trust_remote_code=trust)
        return auto(config)
    try:
        return auto.from_pretrained(
            place, local_files_only=True, use_safetensors=True, trust_remote_code=trust
        )
    except (OSError, ValueError) as error:
        raise LoadError(f"transformers cannot load {place}: {error}{_hint(error)}") from error


def _hint(error: Exception) -> str:
    if "trust_remote_code" not in str(error):
        return ""
    return " (here: trust=True, or --trust on the command line, if you trust who wrote that code)"


def _without_cache(model: Any) -> None:
    """Leave keys and values out of what the forward returns; parts have configs of their own."""
    for part in model.modules():
        if getattr(getattr(part, "config", None), "use_cache", False):
            part.config.use_cache = False


def _dummy_inputs(model: Any) -> Arguments:
    """Tokens or pixels by keyword, as the model's main input says."""
    generator = torch.Generator().manual_seed(0)
    config, main = model.config, model.main_input_name
    if main == "pixel_values":
        shape = (1, int(_find(config, "num_channels", 3)), *_square(config))
        return (), {main: example(shape, model.dtype, generator)}
    if main == "input_ids":
        words = int(_find(config, "vocab_size", 2))
        inputs = {main: example((_BATCH, _TOKENS), torch.int64, generator, below=words)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = inputs[main].clone()
        return (), inputs
    return (), {}


def _find(config: Any, name: str, default: Any) -> Any:
    holders = (config, *(getattr(config, part, None) for part in _SCALES))
    return next((getattr(one, name) for one in holders if hasattr(one, name)), default)


def _square(config: Any) -> tuple[int, int]:
    size = _find(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)
