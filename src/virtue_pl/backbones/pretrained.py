"""Hugging Face models built without their weights, where every tensor is loaded from elsewhere afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from virtue_pl.types import VirtueError

DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of a language model's config, tokenizer and image processor."""
NOT_DESCRIPTIONS = ("*.index.json", "adapter_config.json", "LICENSE*")
_SKIPPED: ContextVar[bool] = ContextVar("weights_skipped", default=False)


@contextmanager
def skip_weights() -> Iterator[None]:
    """Build backbones inside this context from a model's config alone, without reading weights.

    Their tensors are undefined until they are loaded.
    """
    token = _SKIPPED.set(True)
    try:
        yield
    finally:
        _SKIPPED.reset(token)


def are_weights_skipped() -> bool:
    """Return whether `skip_weights` is active."""
    return _SKIPPED.get()


def description_files(name: str) -> list[Path]:
    """Return the files in a model's folder that describe it, beside its weights; none for a name of the hub."""
    found = {path for pattern in DESCRIPTIONS for path in Path(name).glob(pattern)}
    return sorted(path for path in found if not any(path.match(pattern) for pattern in NOT_DESCRIPTIONS))


@contextmanager
def readable_description(name: str | Path) -> Iterator[None]:
    """Raise VirtueError where what describes a model is missing or damaged: its config, its tokenizer.

    So it does where a name is no folder, and cannot be fetched from the hub.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not Path(name).is_dir():
            if not isinstance(error, OSError):
                raise
            raise VirtueError(
                f"{name} is no folder here and cannot be fetched from the hub: give a folder, or the network ({reason})"
            ) from error
        raise VirtueError(
            f"{name}: its config or tokenizer is missing or damaged ({reason}): copy, fetch or export the folder again"
        ) from error


def build_without_weights(name: str, config: dict[str, Any], **settings: Any) -> Any:
    """Return the model that a folder or hub name describes, with undefined tensors.

    config: values that replace those of its config. settings: further arguments of `AutoModel.from_config`.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    with readable_description(name):
        model_config = AutoConfig.from_pretrained(name, trust_remote_code=False, **config)
    with no_init_weights():
        return AutoModel.from_config(model_config, trust_remote_code=False, **settings)
