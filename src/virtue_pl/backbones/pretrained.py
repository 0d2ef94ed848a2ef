"""Hugging Face models without their weights, where something else is going to fill every tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_LEFT_OUT: ContextVar[bool] = ContextVar("weights_left_out", default=False)


@contextmanager
def weights_left_out() -> Iterator[None]:
    """Backbones that are built inside read a model's description, but no weights: what their tensors hold is undefined
    until they are filled.
    """
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def are_weights_left_out() -> bool:
    return _LEFT_OUT.get()


def unfilled(name: str, config: dict[str, Any], **settings: Any) -> Any:
    """The model that the folder or hub name describes, its tensors undefined. `config`: what is changed in its
    description.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    described = AutoConfig.from_pretrained(name, trust_remote_code=False, **config)
    with no_init_weights():
        return AutoModel.from_config(described, trust_remote_code=False, **settings)
