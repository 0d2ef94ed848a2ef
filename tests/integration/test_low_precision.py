"""Models in bfloat16: what says where something is stays in float32, as in transformers, and they run without
autocast.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLModel

from fixtures.tiny_release import published, quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.types import EmbeddingInput, VisualPrompt


def exported(folder: Path) -> Path:
    (folder / "files").mkdir()
    export(run_checkpoint(folder / "run", quickstart_spec(folder / "files")), folder / "exported")
    return folder / "exported"


def rows() -> list[EmbeddingInput]:
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    box = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=(60, 90))
    mask = VisualPrompt(masks=torch.ones(1, 8, 8, dtype=torch.bool).tril())
    return [
        EmbeddingInput("a cat"),
        EmbeddingInput("what is it", (image,), box),
        EmbeddingInput("what is it", (image,), mask),
    ]


@pytest.mark.parametrize(
    "layout", [lambda folder: published(folder / "release" / "model"), exported], ids=["published", "exported"]
)
def test_a_model_in_bfloat16_embeds_nearly_alike(layout, tmp_path):
    folder, shown = layout(tmp_path), rows()
    exact, half = from_pretrained(folder), from_pretrained(folder, dtype="bfloat16")
    with torch.no_grad():
        found, expected = (model.encode(model.collator.encoder_batch(shown)).float() for model in (half, exact))
    assert {parameter.dtype for parameter in half.fusion.parameters()} == {torch.bfloat16}
    assert {
        value.dtype
        for name, value in half.state_dict().items()
        if name.startswith("prompt_encoder") and value.is_floating_point()
    } == {torch.float32}
    assert (found * expected).sum(dim=1).min() > 0.995 and not torch.equal(found, expected)


def test_tensors_are_those_that_the_stock_model_has_in_bfloat16(tmp_path):
    """Its rotary frequencies too: rounded, a place a thousand tokens on would turn by another angle."""
    folder = published(tmp_path / "release" / "model")
    found, stock = (
        from_pretrained(folder, dtype="bfloat16").fusion.backbone.model,
        Qwen2VLModel.from_pretrained(folder, dtype=torch.bfloat16),
    )
    for ours, theirs in (
        (found.named_parameters(), stock.named_parameters()),
        (found.named_buffers(), stock.named_buffers()),
    ):
        tensors, wanted = dict(ours), dict(theirs)
        assert tensors.keys() == wanted.keys()
        for name, value in wanted.items():
            assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value), name
    assert found.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert not torch.equal(
        found.language_model.rotary_emb.inv_freq.bfloat16().float(), found.language_model.rotary_emb.inv_freq
    )
