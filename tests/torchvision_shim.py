"""Lets torchvision's models import beside a torch whose build its compiled operators do not match.

The torchvision wheel on PyPI is a CUDA build: beside a CPU torch its library does not load, and
torchvision then fails on import, for want of operators (nms, roi_align …) that no classification
model calls. Declaring those operators, without giving them a body, is enough for the models.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

# The schema is never looked at: no model under test calls an operator declared here.
_SIGNATURE = "(Tensor input) -> Tensor"
_REGISTRATION = re.compile(r"register_(?:meta|fake)\(\"(?:torchvision::)?(\w+)\"")


def install() -> torch.library.Library | None:
    """Declare torchvision's operators if its own library cannot.

    Returns:
        The library that holds the declarations, to be kept alive as long as torchvision is used;
        None where torchvision is absent or works by itself.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    if _loads(folder):
        return None
    source = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(_REGISTRATION.findall(source))):
        library.define(name + _SIGNATURE)
    return library


def _loads(folder: Path) -> bool:
    compiled = next(iter(sorted(folder.glob("_C.*"))), None)
    if compiled is None:
        return False
    try:
        torch.ops.load_library(compiled)
    except OSError:
        return False
    return True
