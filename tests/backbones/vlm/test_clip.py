"""A CLIP and a SigLIP with tiny random weights of the stock classes: what they embed, untrained and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from fixtures.tiny_models import save_text_model
from fixtures.tiny_vlms import HIDDEN, save_clip, save_siglip
from virtue_pl.backbones.vlm.clip import ClipBackbone
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.cli.main import main
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.preprocessing.input_formatters import VirtueFormatter
from virtue_pl.types import EmbeddingInput, SegmentTokens, VirtueError

SAVE = {"clip": save_clip, "siglip": save_siglip}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: str(save(tmp_path_factory.mktemp(name))) for name, save in SAVE.items()}


@pytest.fixture(params=sorted(SAVE))
def folder(request: pytest.FixtureRequest, folders: dict[str, str]) -> str:
    return folders[request.param]


def head_of(folder: str, **options: Any) -> VLMFusionHead:
    torch.manual_seed(0)
    backbone = ClipBackbone(folder, grid_size=2, max_tokens=48, **options)
    return VLMFusionHead(backbone, LastTokenPooling(), VirtueFormatter(prompt_text=False)).eval()


def make_image(seed: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def embed(head: VLMFusionHead, *items: EmbeddingInput) -> torch.Tensor:
    with torch.no_grad():
        return head(head.collator.encoder_batch(items))


def test_texts_and_images_are_embedded_as_by_the_stock_model(folder: str) -> None:
    """Before training, a row with an image is its text's embedding, read beside the image, plus the image's."""
    head, model = head_of(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["a dog", "the cat that sat on it"]
    fill = {"padding": "max_length", "max_length": 48} if model.config.model_type == "siglip" else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **fill)
    if fill["padding"] == "max_length":
        del tokens["attention_mask"]
    image = make_image(0)
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        of_image = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    torch.testing.assert_close(embed(head, *map(EmbeddingInput, texts)), expected, atol=1e-5, rtol=0)
    ((_, found),) = head.backbone.vision_features([image])
    torch.testing.assert_close(found[None], of_image, atol=1e-4, rtol=0)
    alone = embed(head, EmbeddingInput("a dog", (image,)))
    assert (alone @ found).item() > (expected[:1] @ found).item() + 0.2


def test_an_embedding_does_not_depend_on_its_batch(folder: str) -> None:
    head = head_of(folder)
    items = [
        EmbeddingInput("a text"),
        EmbeddingInput("what is this, and where?", (make_image(1), make_image(2, 50)), image_keys=("1", "2")),
        EmbeddingInput("", (make_image(2, 50),), image_keys=("2",)),
    ]
    batch = head.collator.encoder_batch(items)
    tokens = torch.randn(len(batch.use_rows), 3, HIDDEN)
    with torch.no_grad():
        together, plain = head(batch, SegmentTokens(tokens)), head(batch)
        singles = [head.collator.encoder_batch([item]) for item in items]
        alone = [
            head(singles[0]),
            head(singles[1], SegmentTokens(tokens[:2])),
            head(singles[2], SegmentTokens(tokens[2:])),
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert (together - plain)[1:].norm(dim=1).min() > 1e-3, "segment tokens are read"
    torch.testing.assert_close(together[0], plain[0], atol=1e-5, rtol=0)


def test_the_image_tower_is_frozen_and_its_fingerprint_is_its_own(folder: str) -> None:
    head = head_of(folder, frozen_layers=1).train()
    learns = {name.removeprefix("backbone.") for name, value in head.named_parameters() if value.requires_grad}
    assert not any(name.startswith(("vision.", "project_image.", "text.embeddings.")) for name in learns)
    assert not any(".layers.0." in name for name in learns) and any(".layers.1." in name for name in learns)
    assert not head.backbone.vision.training
    other = head_of(folder)
    assert other.backbone.fingerprint() == head.backbone.fingerprint()
    with torch.no_grad():
        other.backbone.vision.embeddings.patch_embedding.weight.add_(1)
    assert other.backbone.fingerprint() != head.backbone.fingerprint()


def test_long_texts_are_cut_to_the_models_positions(folder: str) -> None:
    head = head_of(folder)
    batch = head.collator.encoder_batch([EmbeddingInput("a very long text " * 20), EmbeddingInput("short")])
    assert batch.input_ids.shape[1] == 48


def test_another_model_too_many_tokens_and_a_missing_folder_are_refused_in_one_line(
    folder: str, tmp_path: Path
) -> None:
    with pytest.raises(VirtueError, match="max_tokens is 200, expected 1 to the 48 positions of"):
        ClipBackbone(folder, max_tokens=200)
    with pytest.raises(VirtueError, match="is a bert, expected a clip or siglip"):
        ClipBackbone(str(save_text_model(tmp_path / "bert")))
    with pytest.raises(VirtueError, match=r"vlm_model: the folder \./nowhere is not there"):
        ClipBackbone("./nowhere")


def test_its_config_is_built_without_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["check", "--config", "configs/virtue_clip.yaml", "--trainer.accelerator", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "openai/clip-vit-base-patch16" in printed and "facebook/sam2.1-hiera-tiny" in printed
