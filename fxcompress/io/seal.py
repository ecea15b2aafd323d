"""Digests: whatever changed between writing and reading is found before anything is believed.

A digest finds damage, not malice: who can write the file can write the digest too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from fxcompress.errors import LoadError

_SEALED = re.compile(rb'(.*), "digest": "([0-9a-f]{64})"\}', re.DOTALL)


def sealed(manifest: Mapping[str, Any], indent: int | None = None) -> str:
    """`manifest` as JSON text whose last entry is the digest of what stands before it."""
    stem = json.dumps(manifest, indent=indent, allow_nan=False)[:-1].rstrip()
    return f'{stem}, "digest": "{_digest(stem.encode())}"}}'


def unsealed(text: bytes, place: object) -> bytes:
    """The JSON text of the manifest that `sealed` was given.

    Raises:
        LoadError: It is not what was written.
    """
    found = _SEALED.fullmatch(text)
    if found is None or _digest(found[1]) != found[2].decode():
        raise LoadError(
            f"the manifest in {place} is damaged: its digest is missing or another one; "
            "save the program again"
        )
    return found[1] + b"}"


def _digest(stem: bytes) -> str:
    return hashlib.sha256(stem).hexdigest()
