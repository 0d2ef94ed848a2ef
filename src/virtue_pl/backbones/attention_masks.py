"""Attention masks made without asking the device whether a row is padded, where the host knows.

transformers leaves a mask out where no token is padded, so that a faster kernel runs, and reads the mask back to find
out: once each time the language model runs, which a gradient cache has it do twice a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

IS_PADDED: ContextVar[bool | None] = ContextVar("is_padded", default=None)
"""True where the rows that run now are padded, False where not; None where transformers is to look."""
SKIPS = ("allow_is_causal_skip", "allow_is_bidirectional_skip")


@contextmanager
def known_padding(is_padded: bool | None) -> Iterator[None]:
    """Have transformers make the masks of networks that run inside as if it had read whether rows are padded."""
    before = IS_PADDED.set(is_padded)
    try:
        yield
    finally:
        IS_PADDED.reset(before)


def without_reading(make_mask: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of transformers that makes masks, changed to use `IS_PADDED` where that is set."""

    @wraps(make_mask)
    def make(*arguments: Any, **options: Any) -> Any:
        is_padded = IS_PADDED.get()
        if is_padded is False:
            options["attention_mask"] = None
        if is_padded:
            options |= {skip: False for skip in SKIPS if skip in options}
        return make_mask(*arguments, **options)

    return make


for _name, _make_mask in dict(ALL_MASK_ATTENTION_FUNCTIONS).items():
    AttentionMaskInterface.register(_name, without_reading(_make_mask))
