"""Export: a run's checkpoint or a published release becomes a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from virtue_pl.checkpoints.folder import write_folder
from virtue_pl.checkpoints.hub import local_folder
from virtue_pl.checkpoints.pretrained import read_release, use_formatter
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.run_checkpoint import has_adapters, read_run, with_left_out, with_merged_adapters
from virtue_pl.checkpoints.write_published import write_published
from virtue_pl.types import VirtueError


def export(
    source: str | Path,
    target: Path,
    layout: Literal["virtue", "published"] = "virtue",
    merge_adapters: bool = False,
    config: Path | None = None,
    sam_checkpoint: str | Path | None = None,
    base: str | Path | None = None,
    license: str | None = None,
    allow_classes: Sequence[str] = (),
) -> CheckpointSpec:
    """Write `source` (a `.ckpt`, a model's folder or hub name) to the new folder `target`; returns the exported model.

    The model is built, and its tensors and its formatter are checked first, so that nothing is written that could not
    be read. Tensors keep their bits. Raises VirtueError where the source cannot be exported so.
    """
    if Path(source).is_file():
        checkpoint = (
            with_left_out(read_run(Path(source), config)) if layout == "published" else read_run(Path(source), config)
        )
    else:
        checkpoint = read_release(local_folder(source), sam_checkpoint, base)
    if merge_adapters:
        checkpoint = with_merged_adapters(checkpoint)
    elif layout == "published" and has_adapters(checkpoint):
        raise VirtueError(f"{source} has adapters, expected none in the published layout: add `--merge-adapters`")
    use_formatter(checkpoint.build(dtype=None, allow_classes=allow_classes), None, str(source))
    write = write_published if layout == "published" else write_folder
    write(checkpoint, Path(target), Path(source).name if Path(source).exists() else str(source), license)
    return checkpoint
