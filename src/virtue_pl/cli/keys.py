"""Keys of a server: of the environment, and of a file."""

from __future__ import annotations

import os
from pathlib import Path

from virtue_pl.apps.server.options import KEY_VARIABLE
from virtue_pl.types import VirtueError


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Return that of the environment, if any, and the keys of a file.

    Raises VirtueError as `read_key_file` does.
    """
    own = os.environ.get(KEY_VARIABLE, "").strip()
    return tuple(dict.fromkeys([*([own] if own else []), *(() if path is None else read_key_file(path))]))


def read_key_file(path: Path) -> list[str]:
    """Return the keys of a file, one a line; empty lines and those that begin with "#" are left out.

    Raises VirtueError for a file that cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise VirtueError(f"--api-key-file {path} cannot be read ({error}), expected a key a line") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise VirtueError(f"--api-key-file {path} holds no key, expected one a line")
    return found
