"""Folders of models on this machine, by path or by a name of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from virtue_pl.backbones.hub_models import check_available
from virtue_pl.types import VirtueError, suggest_path

DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.yaml")
"""Patterns of the files that are fetched; none is code."""


def local_folder(
    name: str | Path, patterns: Sequence[str] = (*DESCRIPTION, *WEIGHTS), revision: str | None = None
) -> Path:
    """Return the folder of that name, or the hub's repository of that name, downloaded once.

    Raises VirtueError where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    text = str(name)
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        expected = "expected one with a model, or a name of the hub (OWNER/NAME)"
        raise VirtueError(f"{name} is no folder, {expected}{suggest_path(text)}")
    check_available(text, "model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        problem = str(error).splitlines()[0]
        raise VirtueError(
            f"model: {name} is no folder here, and cannot be fetched from the hub ({problem[:160]}): name a local"
            f" folder{suggest_path(text)}"
        ) from error
