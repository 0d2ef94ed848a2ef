"""The path that a misspelt one most likely means, for messages."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

SIMILAR = 0.7
"""Least likeness of two names, as difflib counts it, at which one is suggested for the other."""


def suggest_path(path: str | Path) -> str:
    """Return "; did you mean PATH?", of the path that is there and nearest to one that is not; "" where none is near.

    Of a longer path the first part that is missing is compared with what lies beside it.

    Example:
        >>> suggest_path("/no/such/folder")
        ''
    """
    parts = Path(path).parts
    for length in range(1, len(parts) + 1):
        found = Path(*parts[:length])
        if found.exists() or parts[length - 1] in ("/", ".."):
            continue
        try:
            beside = sorted(one.name for one in found.parent.iterdir())
        except OSError:
            return ""
        near = get_close_matches(found.name, beside, 1, SIMILAR)
        if not near:
            return ""
        whole = found.with_name(near[0]).joinpath(*parts[length:])
        return f"; did you mean {whole if whole.exists() else found.with_name(near[0])}?"
    return ""
