from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.tiny_models import save_text_model
from virtue_pl.backbones.vlm.timm_text import TimmTextProcessor
from virtue_pl.types import IMAGE_TOKEN

GRID = 2


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> TimmTextProcessor:
    folder: Path = save_text_model(tmp_path_factory.mktemp("text"))
    return TimmTextProcessor(folder, image_size=64, grid_size=GRID, max_tokens=10)


@pytest.mark.parametrize("text", [f"{IMAGE_TOKEN}{'a' * 30}", f"{'a' * 30}{IMAGE_TOKEN}", f"b{IMAGE_TOKEN}{'a' * 30}"])
def test_a_text_is_cut_and_its_images_are_not_wherever_they_stand(processor: TimmTextProcessor, text: str) -> None:
    ids = processor.tokenize_row(text)
    assert ids.count(processor.IMAGE_ID) == GRID**2 and len(ids) == 10 + GRID**2
    assert (ids[0], ids[-1]) == (processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id)


def test_what_fits_is_not_cut(processor: TimmTextProcessor) -> None:
    assert len(processor.tokenize_row(f"{'a' * 8}{IMAGE_TOKEN}")) == 10 + GRID**2
    assert len(processor.tokenize_row("aaa")) == 5
