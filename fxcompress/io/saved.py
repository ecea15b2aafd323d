"""What the manifest of a program says beside its module, as a pydantic model.

Import this module only where a file is read: pydantic takes a while to import.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fxcompress.io.schema import Text

Axis = Annotated[str, Field(pattern=r"^[0-9]{1,2}$")]
Count = Annotated[int, Field(ge=1)]


class SavedProgram(BaseModel):
    """The fields of a `Program` as `Program.save` writes them, after decoding."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True
    )

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: list[dict[Axis, Text]]
    single: bool
    seed: int
    pin: list[Text]
    probe: bool
    history: list[Text]
    parent: Text
    report: dict[str, Any]
    mixed: list[Text]
    names: dict[Text, Text]
    masks: dict[Text, tuple[Tensor, tuple[Count, Count, Annotated[int, Field(ge=0)]] | None]]
    kept: dict[Text, tuple[Tensor | None, ...]]
