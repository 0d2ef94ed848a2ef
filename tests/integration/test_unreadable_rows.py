"""Rows that a model's processor cannot read cost themselves in a training, and nothing else; check foresees them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fixtures.scar_files import jpeg
from fixtures.tiny_vlms import TINY
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.datamodules.pairs import PairDataModule
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator

SOUND = 5
UNREADABLE = {
    "virtue_pl.backbones.Qwen2VLBackbone": ({"query_image": "thin.png"}, "expected sides of a ratio of at most 200"),
    "virtue_pl.backbones.SmolVLMBackbone": ({"target": "press <image> and <image>"}, "the model's own <image>"),
}


def shards(folder: Path, change: dict[str, Any]) -> str:
    """Sound rows, and one of which `change` is another value."""
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.jpg").write_bytes(jpeg(0, (64, 48)))
    Image.new("RGB", (480, 2)).save(folder / "images/thin.png")
    rows = [{"query": f"what {n}", "query_image": "a.jpg", "target": f"a disc {n}"} for n in range(SOUND + 1)]
    rows[3] |= change
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert_pairs(folder, folder / "shards")
    return str(folder / "shards/train")


@pytest.mark.parametrize("class_path", UNREADABLE)
def test_a_row_that_the_model_cannot_read_is_named_and_others_are_trained(tmp_path: Path, class_path: str) -> None:
    change, problem = UNREADABLE[class_path]
    module, _, backbone = class_path.rpartition(".")
    model = getattr(import_module(module), backbone)(str(TINY[class_path](tmp_path / "vlm")))
    head = VLMFusionHead(model, LastTokenPooling())
    collator = ContrastiveCollator(head.backbone.processor, head.collator.formatter, None, {"none": 1.0}, ["no_prompt"])
    data = PairDataModule(
        shards(tmp_path / "pairs", change),
        batch_size=2,
        sampling=SamplingOptions(steps_per_epoch=6, num_negatives=0),
        reader=ReaderOptions(num_workers=0),
    )
    data.connect(collator)
    batches = list(data.train_dataloader())
    assert len(batches) == 6 and all(len(batch.keys) == 2 for batch in batches)
    assert {key for batch in batches for key in batch.keys} == {f"train/{n}" for n in range(SOUND + 1) if n != 3}
    ((key, found),) = data.skipped.items()
    assert key == "train/3" and problem in found
    count, foreseen = data.find_first_problems(64)
    assert count == SOUND + 1 and list(foreseen) == ["train/3"]
