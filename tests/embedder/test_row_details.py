"""Details of embedded rows: the tokens that the model reads, and the mask that a prompt is taken for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder
from virtue_pl.embedder.row_details import boxes_around
from virtue_pl.embedder.row_keys import row_key
from virtue_pl.metrics.mask_iou import expected_iou
from virtue_pl.preprocessing.segmentations import box_of
from virtue_pl.types import EmbeddingInput, VisualPrompt

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 60, 90), dtype=np.uint8))
BOX = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=(60, 90))
POINT = VisualPrompt.from_pixels(points=[[20, 30]], size=(60, 90))
ROWS = [
    EmbeddingInput("a cat"),
    EmbeddingInput("a longer text of more words"),
    EmbeddingInput("who?", (PIXELS,), BOX, ("image",)),
    EmbeddingInput("", (PIXELS,), POINT, ("image",), (), (BOX,)),
    EmbeddingInput("", (PIXELS,), image_keys=("image",)),
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("details")
    return Embedder(from_pretrained(run_checkpoint(folder / "run", quickstart_spec(folder))))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_details_are_those_of_each_row_and_the_embeddings_stay(embedder, batch_size):
    details = {}
    found = embedder.embed(ROWS, batch_size, details=details)
    torch.testing.assert_close(found, embedder.embed(ROWS, 16), atol=1e-5, rtol=0)
    rows = [details[row_key(item)] for item in ROWS]
    for item, row in zip(ROWS, rows, strict=True):
        batch = embedder.prepare_batch([item])
        assert row.tokens == embedder.model.token_counts(batch)[0]
    assert rows[0].tokens < rows[1].tokens and rows[3].tokens > rows[4].tokens
    assert rows[0].iou is rows[1].iou is rows[4].iou is None
    logits = embedder.predict_mask_logits(ROWS[2:3])
    assert rows[2].iou == pytest.approx(float(expected_iou(logits > 0, logits.sigmoid())), abs=1e-4)


def test_the_segmentation_model_runs_once_for_a_batch(embedder, monkeypatch):
    embedder.embed(ROWS, details={})
    runs, segment = [], embedder.model.segment
    monkeypatch.setattr(embedder.model, "segment", lambda inputs: runs.append(1) or segment(inputs))
    embedder.embed(ROWS, details={})
    assert len(runs) == 1


def test_boxes_are_those_around_the_masks():
    masks = torch.zeros(4, 6, 8, dtype=torch.bool)
    masks[0, 2:5, 1:4] = True
    masks[1, 5, 7] = masks[1, 0, 0] = True
    masks[2, 3, 2] = True
    for mask, box in zip(masks, boxes_around(masks), strict=True):
        expected = box_of(mask.numpy()) or (0, 0, 0, 0)
        assert (box * torch.tensor([8, 6, 8, 6])).tolist() == pytest.approx(expected)
