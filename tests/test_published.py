"""The paper's model in one piece, against what the published implementation computes (golden/README.md)."""

from __future__ import annotations

import pytest
import torch

from recorded import GOLDEN, Case, cases, with_picture
from virtue_pl.backbones.qwen2_vl import Qwen2VLBackbone
from virtue_pl.backbones.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.parts.connector import ConvolutionConnector
from virtue_pl.parts.contrastive_loss import InfoNCELoss
from virtue_pl.parts.fusion_head import VLMFusionHead
from virtue_pl.parts.preprocess import ContrastivePreprocess
from virtue_pl.parts.segmentation_extractor import SegmentationExtractor
from virtue_pl.parts.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.pooling import LastTokenPooling
from virtue_pl.recipes import Recipe, ReferenceRecipe, VirtueRecipe
from virtue_pl.types import EmbeddingInput, EncoderBatch, SegmentTokens, VisualPrompt
from virtue_pl.virtue import Virtue

CANVAS, DIM = 128, 64
"""Of the model that is not compared: large enough for several places a token."""


@pytest.fixture(scope="module")
def head() -> VLMFusionHead:
    return VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling()).eval()


def items(case: Case) -> list[EmbeddingInput]:
    return [EmbeddingInput(text, () if picture is None else (picture,)) for text, picture in zip(case.texts, case.pictures, strict=True)]


def reference(head: VLMFusionHead, inputs: list[EmbeddingInput]) -> EncoderBatch:
    """Recorded texts hold the prompt's words already."""
    recipe = ReferenceRecipe(prompt_text=False)
    return ContrastivePreprocess(head.backbone.processor, recipe, None, {"box": 1.0}, ("box",)).encoder_batch(inputs)


@pytest.mark.parametrize("name", with_picture())
def test_embeddings_and_positions_are_the_published_ones(head, name):
    outputs = cases()[name].outputs
    batch = reference(head, items(cases()[name]))
    with torch.no_grad():
        found = head(batch, SegmentTokens(outputs["seg_tokens"]))
    torch.testing.assert_close(found, outputs["embedding"], atol=1e-5, rtol=0)
    sequence = head.backbone.embed(batch, [torch.zeros(int((batch.input_ids == head.backbone.processor.image_id).sum()), head.hidden_size)])
    assert torch.equal(sequence.prepend(outputs["seg_tokens"], batch.use_rows).position_ids, outputs["position_ids"])


def test_all_recorded_rows_in_one_batch_are_still_the_published_ones(head):
    """Texts beside pictures, and rows of every length; the published implementation mixes them up."""
    names = ["text_only_batch3", *with_picture(), "text_only_1"]
    segments = torch.cat([cases()[name].outputs["seg_tokens"] for name in with_picture()])
    with torch.no_grad():
        found = head(reference(head, [item for name in names for item in items(cases()[name])]), SegmentTokens(segments))
    torch.testing.assert_close(found, torch.cat([cases()[name].outputs["embedding"] for name in names]), atol=1e-5, rtol=0)


def virtue(recipe: Recipe) -> Virtue:
    torch.manual_seed(0)
    backbone = Sam2Backbone(None, 16, 2, (1, 2, 3, 1), (4,), embed_dim=DIM, image_size=CANVAS)
    return Virtue(
        VisualPromptEncoder(Sam2PromptEncoder(None, DIM, CANVAS), frozen=True),
        SegmentationExtractor(backbone, frozen=True),
        ConvolutionConnector,
        VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling()),
        InfoNCELoss(0.02),
        recipe=recipe,
    ).eval()


def mixed() -> list[EmbeddingInput]:
    """Rows with and without pictures and prompts, of every kind."""
    first, second = (cases()[name].pictures[0] for name in ("image_noprompt", "image_point"))
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
        EmbeddingInput("look at this picture", (second,), image_keys=("second",)),
        EmbeddingInput("a much longer text, with no picture"),
    ]


def several() -> EmbeddingInput:
    """Two pictures in one row, the first one prompted."""
    shown = (cases()["image_noprompt"].pictures[0], cases()["image_point"].pictures[0])
    return EmbeddingInput("find it in both", shown, VisualPrompt.from_pixels(boxes=[[4, 4, 30, 40]], size=shown[0].shape[1:]), ("first", "second"))


RECIPES = {"virtue": (VirtueRecipe(), [*mixed(), several()]), "reference": (ReferenceRecipe(prompt_frame="canvas", num_segment_tokens=4), mixed())}
"""With rows of every kind that they know."""


@pytest.mark.parametrize(("recipe", "rows"), RECIPES.values(), ids=RECIPES)
def test_a_row_in_any_batch_is_itself_alone(recipe, rows):
    model = virtue(recipe)
    preprocess = model.preprocess
    with torch.no_grad():
        batch = preprocess.encoder_batch(rows)
        together = model.encode(batch)
        alone = torch.cat([model.encode(preprocess.encoder_batch([item])) for item in rows])
        chunks = torch.cat([model.encode(chunk) for chunk in batch.split(3)])
    assert len(batch.pictures) == 2
    assert (together - alone).abs().max() < 1e-5 and (together - chunks).abs().max() < 1e-5


def test_only_the_connector_and_the_language_models_layers_learn():
    model = virtue(VirtueRecipe()).train()
    model.encode(model.preprocess.encoder_batch(mixed())).sum().backward()
    learned = {name.rpartition("layers.")[0] or name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(name.startswith(("connector.", "fusion.backbone.model.language_model.")) for name in learned)
    assert all(parameter.grad is not None for parameter in model.connector.parameters())
    assert not model.segmentation.training and not model.prompt_encoder.training
