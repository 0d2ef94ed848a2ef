"""The masks that transformers makes where it is told whether rows are padded are those it makes where it looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from fixtures.device_work import DeviceWork
from virtue_pl.backbones.attention_masks import IS_PADDED, known_padding

MAKERS = {
    "causal": create_causal_mask,
    "sliding": create_sliding_window_causal_mask,
    "bidirectional": create_bidirectional_mask,
}
ROWS = {
    "right": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
    "left": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
    "none": torch.ones(2, 4, dtype=torch.long),
    "one token": torch.ones(2, 1, dtype=torch.long),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("name", sorted(ROWS))
def test_masks_are_the_same_and_nothing_is_read(name: str, kind: str, attention: str) -> None:
    config: Any = LlamaConfig(attn_implementation=attention, sliding_window=3)
    mask = ROWS[name]
    options = {"cache": None, "inputs_embeds": torch.zeros(*mask.shape, 8), "attention_mask": mask}
    expected = MAKERS[kind](config, **options)
    with known_padding(not bool(mask.all())), DeviceWork() as done:
        found = MAKERS[kind](config, **options)
    assert not done.reads and IS_PADDED.get() is None
    assert found is expected is None or torch.equal(found, expected)


def test_what_runs_outside_is_looked_at() -> None:
    with DeviceWork() as done:
        create_causal_mask(LlamaConfig(attn_implementation="sdpa"), torch.zeros(2, 4, 8), ROWS["none"], None)
    assert done.reads
