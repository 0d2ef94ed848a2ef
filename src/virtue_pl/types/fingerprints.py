"""Fingerprints of what stored results depend on: the one hash that all of this package's keys go through.

A stored embedding, feature, stage, shard or scene is found again by a fingerprint of all that its numbers depend on,
given as plain values. `features.fingerprints` describes models so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FORMAT = 1
"""Raised whenever this package begins to compute other numbers from equal inputs: all that is stored is then stale."""
LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "timm",
    "peft",
    "segment-anything",
    "pillow",
)
"""Libraries that compute an embedding: networks, resizing, decoding and tokens. The rest only moves numbers."""


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str | None]:
    """Return the installed version of each library by its name; None for one that is not installed."""
    return {name: library_version(name) for name in names}


@cache
def library_version(name: str) -> str | None:
    """Return the installed version of a library; None for one that is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def hash_values(*values: Any) -> str:
    """Return the SHA-256 of plain values (None, bools, numbers, strings, lists, mappings of strings), 64 digits.

    It is the same in any process, whatever the order of a mapping's keys. Raises TypeError for any other value.

    Example:
        >>> hash_values({"a": 1, "b": [2.5]}) == hash_values({"b": [2.5], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
