"""Files of reports, each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virtue_pl.types import VirtueError, replace_whole


def write_text(path: str | Path, text: str) -> Path:
    """Write a text whole or not at all, see `write_bytes`."""
    return write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write beside `path` first and then move, so that no reader ever finds half a file."""
    path = Path(path)
    with replace_whole(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_json(path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write a report as strict, indented JSON. Raises VirtueError for a number that JSON cannot hold."""
    try:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise VirtueError(
            f"{path}: the report holds a value that is no number ({error}), expected finite metrics"
        ) from error
    return write_text(path, text + "\n")
