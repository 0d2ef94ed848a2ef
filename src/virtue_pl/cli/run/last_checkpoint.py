"""The checkpoint that `--ckpt_path last` means: the last one or, where that is damaged, the newest that is whole."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from virtue_pl.cli.run.folder import checkpoint_folders
from virtue_pl.engine.weight_files import describe_damage, load_pickled
from virtue_pl.types import VirtueError

LAST = re.compile(r"last(-v?\d+)?\.ckpt")
"""Names of the checkpoints that Lightning chooses from for `last`."""


def replace_damaged_last(config: Any, command: str) -> None:
    """Have a command whose `ckpt_path` is "last" read the newest whole checkpoint, where the last one is damaged.

    It is said on stderr which is damaged and which is taken. Raises VirtueError where none is whole.
    """
    if config.get("ckpt_path") != "last":
        return
    present = [path for folder in checkpoint_folders(config) for path in folder.glob("*.ckpt")]
    last = sorted((path for path in present if LAST.fullmatch(path.name)), key=modified)
    if not last or not (problem := describe_damage(last[-1])):
        return
    damaged = f"{command}: {last[-1]} is damaged ({problem})"
    step, taken = newest_whole([path for path in present if path != last[-1]])
    if taken is None:
        others = f", as are the {len(present) - 1} others beside it" if len(present) > 1 else ""
        raise VirtueError(
            f"{damaged}{others}: remove it, name another checkpoint by `--ckpt_path FILE`, or start anew with another"
            " `--shared.run FOLDER`"
        )
    rank_zero_only(print)(f"virtue-pl: {damaged}: going on from {taken}, of step {step}", file=sys.stderr)
    config.ckpt_path = str(taken)


def modified(path: Path) -> int:
    """Return when a file or folder was last changed."""
    return path.stat().st_mtime_ns


def newest_whole(paths: Sequence[Path]) -> tuple[int, Path | None]:
    """Return the step and path of the whole checkpoint of the most steps; None for its path where there is none."""
    found: list[tuple[int, int, Path]] = []
    for path in paths:
        if not path.is_dir() and not describe_damage(path):
            try:
                found.append((int(load_pickled(path, mmap=True)["global_step"]), modified(path), path))
            except (VirtueError, LookupError, TypeError, ValueError):  # a file of another kind
                continue
    step, _, taken = max(found, default=(0, 0, None))
    return step, taken
