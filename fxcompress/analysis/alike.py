"""Names that differ in numbers alone, as those of the blocks of a deep network do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in numbers alone as one, with ``*`` where they differ and their count.

    >>> folded(["stem", "blocks.0.fc1", "blocks.1.fc1"])
    ['stem', 'blocks.*.fc1 (2)']
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(without_numbers(name), []).append(name)
    merged: dict[str, list[str]] = {}
    for own in alike.values():
        merged.setdefault(common_name(own), []).extend(own)
    return [name if len(own) == 1 else f"{name} ({len(own)})" for name, own in merged.items()]


def without_numbers(name: str) -> str:
    """Equal for names that differ in numbers alone."""
    return re.sub(r"\d+", "#", name)


def common_name(names: Sequence[str]) -> str:
    """One glob for names that differ in numbers alone.

    >>> common_name(["layer1.0.conv1", "layer1.1.conv1"])
    'layer1.*.conv1'
    """
    split = [re.split(r"(\d+)", name) for name in names]
    return "".join(
        part if all(part == other[place] for other in split) else "*"
        for place, part in enumerate(split[0])
    )
