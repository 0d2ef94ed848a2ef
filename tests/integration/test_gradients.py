"""Loss, embeddings and gradients of four pairs in the paper's model, against the published implementation's
(golden/README.md).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fixtures.recorded import CANVAS, GOLDEN
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.segmentation.sam2_weights import load_sam2, rename_tensors
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.images import decode
from virtue_pl.preprocessing.input_formatters import PublishedFormatter
from virtue_pl.types import EmbeddingInput, PairBatch, PairIds, VisualPrompt

SAM = GOLDEN / "sam2_image_and_prompts.pt"
DIM, TOLERANCE = 64, 1e-3
OURS = {
    "encoder.base_model.model.model.": "fusion.backbone.model.language_model.",
    "segmentation_model.sam2_reducer.": "connector.reduce.",
    "segmentation_model.sam2vlm_layer.": "connector.project.",
}
"""The published names' beginnings, and ours."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((GOLDEN / "gradients.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, Tensor]]:
    """By set, such as "grad_init", under our names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(GOLDEN / "gradients.safetensors").items():
        kind, _, published = name.partition("/")
        for theirs, ours in OURS.items():
            published = published.replace(theirs, ours)
        found.setdefault(kind, {})[published] = tensor
    return found


def segmentation(weights: dict[str, Tensor]) -> SegmentationExtractor:
    """SAM 2.1 of the recorded sizes. What stands behind the paper's feature is not recorded, and stays random."""
    backbone = Sam2Backbone(None, 16, 2, (1, 2, 3, 1), (4,), embed_dim=DIM, image_size=CANVAS)
    load_sam2({"vision_encoder.": backbone.vision_encoder, "no_memory_embedding": backbone.no_memory_embedding}, SAM)
    decoder = {
        name.removeprefix("mask_decoder."): tensor
        for name, tensor in rename_tensors(weights).items()
        if name.startswith("mask_decoder.")
    }
    report = backbone.mask_decoder.load_state_dict(decoder, strict=False)
    assert not report.unexpected_keys and not any(
        name.startswith("transformer.layers.") for name in report.missing_keys
    )
    return SegmentationExtractor(backbone, frozen=True)


@pytest.fixture(scope="module")
def model() -> Virtue:
    weights = load_file(GOLDEN / "two_way_and_connector.safetensors")
    head = VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling(), adapter=LoRA(dropout=0.0))
    prompts = VisualPromptEncoder(Sam2PromptEncoder(SAM, DIM, CANVAS), frozen=True)
    found = Virtue(
        prompts,
        segmentation(weights),
        ConvolutionConnector,
        head,
        InfoNCELoss(0.02),
        formatter=PublishedFormatter(prompt_text=False),
    )
    for part, published in ((found.connector.reduce, "sam2_reducer."), (found.connector.project, "sam2vlm_layer.")):
        part.load_state_dict(
            {name.removeprefix(published): tensor for name, tensor in weights.items() if name.startswith(published)}
        )
    return found.train()


@pytest.fixture(scope="module")
def batch(model, recorded) -> PairBatch:
    """The four pairs; what the frozen networks see in their images is computed once for all tests."""
    images = [decode((GOLDEN / path).read_bytes(), path) for path in recorded["images"]]
    prompts = [VisualPrompt(boxes=torch.tensor([box]) / CANVAS) for box in recorded["bboxes"]]
    inputs = [
        EmbeddingInput(text, (image,), prompt)
        for text, image, prompt in zip(recorded["texts"], images, prompts, strict=True)
    ]
    collator = model.collator
    queries, targets = (
        collator.encoder_batch(inputs),
        collator.encoder_batch([EmbeddingInput(text) for text in recorded["targets"]]),
    )
    rows = torch.arange(len(queries))
    queries = replace(queries, images=replace(queries.images, features=model.image_features(queries.images)))
    return PairBatch(tuple(recorded["images"]), queries, targets, None, PairIds(rows, rows + len(rows)))


@pytest.mark.parametrize(
    "cache", [FullBatch(), GradientCache(2), GradientCache(3)], ids=["plain", "chunks of 2", "chunks of 3"]
)
@pytest.mark.parametrize("adapters", ["init", "perturbed"])
def test_loss_embeddings_and_gradients_are_the_published_ones(model, batch, recorded, tensors, adapters, cache):
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in tensors[f"adapter_{adapters}"].items():
            parameters[name].copy_(value)
    model.zero_grad()
    model.gradient_cache = cache
    embeddings = model.embed_pairs(batch)
    loss = model.loss(embeddings).loss
    loss.backward()
    expected = tensors[f"grad_{adapters}"]
    assert loss.item() == pytest.approx(recorded["loss"][adapters], rel=1e-4)
    torch.testing.assert_close(embeddings.queries, tensors[f"reps_{adapters}"]["qry"], atol=1e-4, rtol=0)
    torch.testing.assert_close(embeddings.targets, tensors[f"reps_{adapters}"]["tgt"], atol=1e-4, rtol=0)
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == expected.keys()
    for name, gradient in expected.items():
        assert (parameters[name].grad - gradient).norm() <= TOLERANCE * gradient.norm(), name


def test_the_adapters_are_the_published_ones(model, recorded, tensors):
    """Ours names the linear maps that the published list reaches in a Qwen2-VL: its vision tower has none of these
    names.
    """
    published, ours = recorded["lora_config"], LoRA()
    config = ours.config
    assert (config.r, config.lora_alpha, config.use_dora, config.init_lora_weights) == tuple(
        published[name] for name in ("r", "lora_alpha", "use_dora", "init_lora_weights")
    )
    linear = {
        name.rpartition(".")[2]
        for name, module in Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert set(ours.targets) == linear & set(published["target_modules"])
    adapters = {name for name, parameter in model.fusion.named_parameters(prefix="fusion") if parameter.requires_grad}
    assert adapters == tensors["adapter_init"].keys()
