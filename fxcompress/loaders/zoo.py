"""Models of torchvision and timm, by name, with random weights: nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch

from fxcompress.errors import LoadError
from fxcompress.loaders.code import Made
from fxcompress.loaders.inputs import example

_DEFAULT_SIZE = (224, 224)
_FRAMES = 16


def from_torchvision(name: str) -> Made:
    """A torchvision model, with an image of the size its weights were trained on."""
    with unbroken_torchvision("torchvision"):
        models = importlib.import_module("torchvision.models")
    _require(name, models.list_models(), "torchvision")
    model = models.get_model(name, weights=None)
    return model, ((_drawn(_torchvision_shape(models, name)),), {})


def from_timm(name: str) -> Made:
    """A timm model, with an input of the size in its configuration."""
    with unbroken_torchvision("timm"):
        timm = importlib.import_module("timm")
    _require(name.partition(".")[0], timm.list_models(), "timm")
    model = timm.create_model(name, pretrained=False)
    return model, ((_drawn((1, *model.pretrained_cfg["input_size"])),), {})


@contextmanager
def unbroken_torchvision(package: str) -> Iterator[None]:
    """Turn a package that is missing, or that stumbles over torchvision, into what to install.

    Raises:
        LoadError: With the command that mends it.
    """
    try:
        yield
    except Exception as error:
        if any("torchvision::" in str(cause) for cause in _causes(error)):
            raise LoadError(_wrong_build(package)) from error
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise LoadError(
                f"{package} is not installed; pip install 'fxcompress[models]'"
            ) from error
        raise


def _wrong_build(package: str) -> str:
    torch_build = torch.version.cuda
    tag = "cu" + torch_build.replace(".", "") if torch_build else "cpu"
    wanted = importlib.metadata.version("torchvision").partition("+")[0]
    needs = "" if package == "torchvision" else f"{package} imports torchvision, and "
    return (
        f"{needs}torchvision {wanted} was built for another torch than the {torch.__version__} "
        f"that is installed; install the build that fits: pip install --force-reinstall --no-deps "
        f"torchvision=={wanted} --index-url https://download.pytorch.org/whl/{tag}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _require(name: str, known: list[str], package: str) -> None:
    if name not in known:
        near = ", ".join(get_close_matches(name, known, n=3, cutoff=0.0))
        raise LoadError(f"{package} has no model {name!r}; the nearest are {near}")


def _torchvision_shape(models: Any, name: str) -> tuple[int, ...]:
    """The crop of the model's own preprocessing; videos have frames, detectors any size."""
    preset = models.get_model_weights(name).DEFAULT.transforms()
    crop = getattr(preset, "crop_size", _DEFAULT_SIZE)
    height, width = crop if len(crop) == 2 else (crop[0], crop[0])
    frames = (_FRAMES,) if type(preset).__name__ == "VideoClassification" else ()
    return (1, 3, *frames, height, width)


def _drawn(shape: tuple[int, ...]) -> torch.Tensor:
    return example(shape, torch.float32, torch.Generator().manual_seed(0))
