"""Names of the Hugging Face hub as folders on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from virtue_pl.types import VirtueError

DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.yaml")
"""What is fetched; no file of code is."""


def local_folder(
    name: str | Path, patterns: Sequence[str] = (*DESCRIPTION, *WEIGHTS), revision: str | None = None
) -> Path:
    """The folder of that name, or what the hub has under it, downloaded once. Raises VirtueError in one line where
    neither is there.
    """
    if Path(name).is_dir():
        return Path(name)
    text = str(name)
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise VirtueError(f"{name} is no folder, expected one with a model, or a name of the hub (OWNER/NAME)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        problem = str(error).splitlines()[0]
        raise VirtueError(
            f"{name} is no folder here and cannot be fetched from the hub: give a folder, or the network"
            f" ({problem[:160]})"
        ) from error
