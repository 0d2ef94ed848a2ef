"""Text encoders of several families, each held to what transformers' own model computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    T5Config,
)

from fixtures.tiny_models import VISION_MODEL, save_text_model
from virtue_pl.backbones.class_names import embed_descriptions
from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.backbones.text_encoder import load_text_encoder
from virtue_pl.backbones.vlm.pooling import MeanPooling
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.types import EmbeddingInput, Sample, VirtueError

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
POSITIONS = {"max_position_embeddings": 80}
FAMILIES: dict[str, Callable[[int], Any]] = {
    "BERT": lambda vocabulary: BertConfig(vocab_size=vocabulary, **SIZES, **POSITIONS),
    "RoBERTa": lambda vocabulary: RobertaConfig(vocab_size=vocabulary, pad_token_id=0, **SIZES, **POSITIONS),
    "MPNet": lambda vocabulary: MPNetConfig(vocab_size=vocabulary, **SIZES, **POSITIONS),
    "DistilBERT": lambda vocabulary: DistilBertConfig(
        vocab_size=vocabulary, n_layers=3, n_heads=4, dim=32, hidden_dim=64, **POSITIONS
    ),
    "ModernBERT": lambda vocabulary: ModernBertConfig(
        vocab_size=vocabulary, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, **SIZES
    ),
}
OTHERS: dict[str, Callable[[int], Any]] = {
    "Electra": lambda vocabulary: ElectraConfig(vocab_size=vocabulary, embedding_size=16, **SIZES),
    "GPT2": lambda vocabulary: GPT2Config(vocab_size=vocabulary, n_layer=1, n_head=2, n_embd=8),
    "T5": lambda vocabulary: T5Config(vocab_size=vocabulary, num_layers=1, d_model=8, d_kv=4, d_ff=8, num_heads=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model of a family, with a tokenizer of letters."""

    @cache
    def save(family: str) -> str:
        target: Path = save_text_model(tmp_path_factory.mktemp(family), layers=1)
        vocabulary = len(AutoTokenizer.from_pretrained(target))
        torch.manual_seed(0)
        model = AutoModel.from_config((FAMILIES | OTHERS)[family](vocabulary))
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower() and parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(target)
        return str(target)

    return save


def backbone(name: str, **options: Any) -> TimmTextBackbone:
    torch.manual_seed(0)
    return TimmTextBackbone(name, VISION_MODEL, image_size=64, grid_size=2, max_tokens=64, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_have_the_states_of_transformers_own_model(family: str, folder: Callable[[str], str]) -> None:
    head = VLMFusionHead(backbone(folder(family)), MeanPooling()).eval()
    texts = ["a fox", "two small red cups on a long table"]
    batch = head.collator.encoder_batch([EmbeddingInput(text) for text in texts])
    own = AutoModel.from_pretrained(folder(family)).eval()
    with torch.no_grad():
        expected = own(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        found = head.backbone(head.backbone.embed(batch, []))
    real = batch.attention_mask.bool()
    assert not real.all()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_texts_train_together(family: str, folder: Callable[[str], str]) -> None:
    head = VLMFusionHead(
        backbone(folder(family), frozen_layers=1, dropout=0.25), MeanPooling(), loss=InfoNCELoss(0.1)
    ).train()
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    queries = [EmbeddingInput("find", (image + number,), image_keys=(str(number),)) for number in (0, 90)]
    samples = [Sample(str(row), "t", query, EmbeddingInput(f"thing {row}")) for row, query in enumerate(queries)]
    output = head.loss(head.embed_pairs(head.collator.collate_train(samples)))
    output.loss.backward()
    layers = head.backbone.layers
    assert output.loss.isfinite() and len(layers) == 3
    assert not any(parameter.requires_grad for parameter in layers[0].parameters())
    assert all(parameter.grad is not None for parameter in layers[-1].parameters())
    rates = {module.p for module in layers[-1].modules() if isinstance(module, nn.Dropout)}
    assert rates <= {0.25} and not layers[0].training and layers[-1].training


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_described_and_nothing_is_read_without_weights(family: str, folder: Callable[[str], str]) -> None:
    encoder = load_text_encoder(folder(family), 0.0).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder(family))
    found = embed_descriptions(["a cat", "a dog", "a red cup"], encoder, tokenizer)
    assert found.shape == (3, 32) and found.isfinite().all()
    with skip_weights(), torch.device("meta"):
        assert next(load_text_encoder(folder(family), 0.0).parameters()).is_meta


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("Electra", "embeddings of 16 numbers and states of 32"),
        ("GPT2", "is a GPT2Model, expected a text encoder"),
        ("T5", "is a T5Model, expected a text encoder"),
    ],
)
def test_other_models_are_refused_in_one_line(family: str, told: str, folder: Callable[[str], str]) -> None:
    with pytest.raises(VirtueError, match=told) as caught:
        load_text_encoder(folder(family), 0.0)
    assert "\n" not in str(caught.value)
