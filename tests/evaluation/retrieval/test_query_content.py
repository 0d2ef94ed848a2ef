from __future__ import annotations

import pytest
import torch

from virtue_pl.evaluation.retrieval.query_content import ContentDigest
from virtue_pl.types import EmbeddingInput, Region

CAPTIONS = tuple(EmbeddingInput(text) for text in ("a cat", "a dog", "a rat"))
BOX = Region(torch.tensor([0.1, 0.2, 0.5, 0.6]))
SAME = {"text": "What?", "image_keys": ("a",), "region": BOX, "candidates": CAPTIONS, "rankings": {"hit@1": (0, 1)}}


@pytest.mark.parametrize(
    "change",
    [
        {"image_keys": ("b",)},
        {"region": Region(torch.tensor([0.1, 0.2, 0.5, 0.7]))},
        {"region": Region(BOX.box, torch.ones(2, 2, dtype=torch.bool))},
        {"region": None},
        {"candidates": CAPTIONS[::-1]},
        {"candidates": (*CAPTIONS[:2], EmbeddingInput("a rat", image_keys=("c",)))},
        {"rankings": {"hit@1": (0, 2)}},
        {"rankings": {"hit@1": (0, 1), "object": (0, 2)}},
    ],
)
def test_other_data_has_another_checksum(change: dict[str, object]) -> None:
    digest = ContentDigest()
    assert digest(**{**SAME, **change}) != digest(**SAME) == ContentDigest()(**SAME)  # type: ignore[arg-type]


def test_how_a_region_is_asked_for_does_not_count() -> None:
    """The published form writes the box into the text; without a region the text is the question."""
    digest = ContentDigest()
    assert digest(**SAME) == digest(**{**SAME, "text": "What is in [1, 2, 3, 4]?"})  # type: ignore[arg-type]
    bare = {**SAME, "region": None}
    assert digest(**bare) != digest(**{**bare, "text": "Why?"})  # type: ignore[arg-type]
