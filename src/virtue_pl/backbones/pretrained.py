"""Hugging Face models built without their weights, where every tensor is loaded from elsewhere afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

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


def build_without_weights(name: str, config: dict[str, Any], **settings: Any) -> Any:
    """Return the model that a folder or hub name describes, with undefined tensors.

    config: values that replace those of its config. settings: further arguments of `AutoModel.from_config`.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    model_config = AutoConfig.from_pretrained(name, trust_remote_code=False, **config)
    with no_init_weights():
        return AutoModel.from_config(model_config, trust_remote_code=False, **settings)
