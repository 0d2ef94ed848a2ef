"""The paper's model in one piece, against what the published implementation computes (golden/README.md)."""

from __future__ import annotations

import pytest
import torch

from fixtures.recorded import GOLDEN, Case, cases, replace_first_image
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import InputFormatter, PublishedFormatter, VirtueFormatter
from virtue_pl.types import EmbeddingInput, EncoderBatch, SegmentTokens, VisualPrompt

CANVAS, DIM = 128, 64
"""Of the model that is not compared: large enough for several places a token."""


@pytest.fixture(scope="module")
def head() -> VLMFusionHead:
    return VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling()).eval()


def items(case: Case) -> list[EmbeddingInput]:
    return [
        EmbeddingInput(text, () if image is None else (image,))
        for text, image in zip(case.texts, case.images, strict=True)
    ]


def reference(head: VLMFusionHead, inputs: list[EmbeddingInput]) -> EncoderBatch:
    """Recorded texts hold the prompt's words already."""
    formatter = PublishedFormatter(prompt_text=False)
    return ContrastiveCollator(head.backbone.processor, formatter, None, {"box": 1.0}, ("box",)).encoder_batch(inputs)


@pytest.mark.parametrize("name", replace_first_image())
def test_embeddings_and_positions_are_the_published_ones(head, name):
    outputs = cases()[name].outputs
    batch = reference(head, items(cases()[name]))
    with torch.no_grad():
        found = head(batch, SegmentTokens(outputs["seg_tokens"]))
    torch.testing.assert_close(found, outputs["embedding"], atol=1e-5, rtol=0)
    sequence = head.backbone.embed(
        batch, [torch.zeros(int((batch.input_ids == head.backbone.processor.image_id).sum()), head.hidden_size)]
    )
    assert torch.equal(sequence.prepend(outputs["seg_tokens"], batch.use_rows).position_ids, outputs["position_ids"])


def test_all_recorded_rows_in_one_batch_are_still_the_published_ones(head):
    """Texts beside images, and rows of every length; the published implementation mixes them up."""
    names = ["text_only_batch3", *replace_first_image(), "text_only_1"]
    segments = torch.cat([cases()[name].outputs["seg_tokens"] for name in replace_first_image()])
    with torch.no_grad():
        found = head(
            reference(head, [item for name in names for item in items(cases()[name])]), SegmentTokens(segments)
        )
    torch.testing.assert_close(
        found, torch.cat([cases()[name].outputs["embedding"] for name in names]), atol=1e-5, rtol=0
    )


def virtue(formatter: InputFormatter) -> Virtue:
    torch.manual_seed(0)
    backbone = Sam2Backbone(None, 16, 2, (1, 2, 3, 1), (4,), embed_dim=DIM, image_size=CANVAS)
    return Virtue(
        VisualPromptEncoder(Sam2PromptEncoder(None, DIM, CANVAS), frozen=True),
        SegmentationExtractor(backbone, frozen=True),
        ConvolutionConnector,
        VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling()),
        InfoNCELoss(0.02),
        formatter=formatter,
    ).eval()


def mixed() -> list[EmbeddingInput]:
    """Rows with and without images and prompts, of every kind."""
    first, second = (cases()[name].images[0] for name in ("image_noprompt", "image_point"))
    size = (first.shape[1], first.shape[2])
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, 10:30, 20:50] = True
    prompts = [
        VisualPrompt(),
        VisualPrompt.from_pixels(boxes=[[4, 4, 30, 40]], size=size),
        VisualPrompt.from_pixels(boxes=[[4, 4, 30, 40], [50, 10, 90, 80]], points=[[60, 20]], size=size),
        VisualPrompt.from_pixels(points=[[9, 9], [50, 50]], labels=[1, 0], size=size),
        VisualPrompt.from_pixels(masks=mask, size=size),
    ]
    shown = [EmbeddingInput("find it", (first,), prompt, ("first",)) for prompt in prompts]
    return [
        EmbeddingInput("a cat"),
        *shown,
        EmbeddingInput("look at this image", (second,), image_keys=("second",)),
        EmbeddingInput("a much longer text, with no image"),
    ]


def several() -> EmbeddingInput:
    """Two images in one row, the first one prompted."""
    shown = (cases()["image_noprompt"].images[0], cases()["image_point"].images[0])
    return EmbeddingInput(
        "find it in both",
        shown,
        VisualPrompt.from_pixels(boxes=[[4, 4, 30, 40]], size=shown[0].shape[1:]),
        ("first", "second"),
    )


FORMATTERS = {
    "virtue": (VirtueFormatter(), [*mixed(), several()]),
    "reference": (PublishedFormatter(prompt_frame="canvas", num_segment_tokens=4), mixed()),
}
"""With rows of every kind that they know."""


@pytest.mark.parametrize(("formatter", "rows"), FORMATTERS.values(), ids=FORMATTERS)
def test_a_row_in_any_batch_is_itself_alone(formatter, rows):
    model = virtue(formatter)
    collator = model.collator
    with torch.no_grad():
        batch = collator.encoder_batch(rows)
        together = model.encode(batch)
        alone = torch.cat([model.encode(collator.encoder_batch([item])) for item in rows])
        chunks = torch.cat([model.encode(chunk) for chunk in batch.split(3)])
    assert len(batch.images) == 2
    assert (together - alone).abs().max() < 1e-5 and (together - chunks).abs().max() < 1e-5


def test_only_the_connector_and_the_language_models_layers_learn():
    model = virtue(VirtueFormatter()).train()
    model.encode(model.collator.encoder_batch(mixed())).sum().backward()
    learned = {
        name.rpartition("layers.")[0] or name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert all(name.startswith(("connector.", "fusion.backbone.model.language_model.")) for name in learned)
    assert all(parameter.grad is not None for parameter in model.connector.parameters())
    assert not model.segmentation.training and not model.prompt_encoder.training
