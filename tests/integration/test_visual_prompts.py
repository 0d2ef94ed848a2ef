"""Prompts of every kind through the whole model: the recorded vision-language model and each segmentation model, with
random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from fixtures.recorded import GOLDEN
from fixtures.tiny_models import VISION_MODEL
from virtue_pl.backbones.segmentation.base import PromptEncoder, SegmentationBackbone
from virtue_pl.backbones.segmentation.sam1 import Sam1Backbone, Sam1PromptEncoder
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.input_formatters import PublishedFormatter, VirtueFormatter
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

CANVAS, DIM = 128, 32
TOKENS = (CANVAS // 16 // 4) ** 2
"""Segment tokens of a prompt."""

Pair = tuple[PromptEncoder, SegmentationBackbone]


def timm_sam(grid_size: int) -> Pair:
    return TimmSamPromptEncoder(DIM, CANVAS, grid_size), TimmSamBackbone(
        VISION_MODEL, None, DIM, CANVAS, num_heads=2, mlp_dim=64
    )


def sam1(grid_size: int) -> Pair:
    return Sam1PromptEncoder(None, DIM, CANVAS, grid_size), Sam1Backbone(None, 16, 3, 2, (1,), 4, DIM, CANVAS)


def sam2(grid_size: int) -> Pair:
    return Sam2PromptEncoder(None, DIM, CANVAS, grid_size), Sam2Backbone(
        None, 16, 2, (1, 2, 3, 1), (4,), embed_dim=DIM, image_size=CANVAS
    )


def virtue(pair: Callable[[int], Pair], grid_size: int = 3, segment_unprompted: bool = True) -> Virtue:
    torch.manual_seed(0)
    encoder, backbone = pair(grid_size)
    for module in (encoder, backbone):
        for name, parameter in module.named_parameters():
            if "transformer" in name or "embed" in name or "downscaling" in name:
                nn.init.normal_(parameter, std=0.2)
    head = VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling())
    formatter = VirtueFormatter(prompt_text=False)
    parts = VisualPromptEncoder(encoder, frozen=True), SegmentationExtractor(backbone, frozen=True)
    return Virtue(
        *parts, ConvolutionConnector, head, InfoNCELoss(), formatter=formatter, segment_unprompted=segment_unprompted
    ).eval()


@pytest.fixture(scope="module", params=[timm_sam, sam1, sam2], ids=lambda pair: pair.__name__)
def model(request: pytest.FixtureRequest) -> Virtue:
    return virtue(request.param)


def make_image(seed: int, height: int = 70, width: int = 100) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def quarter(size: int = 50) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, : size // 2, : size // 2] = True
    return mask


BOX = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9]]))
OTHER_BOX = VisualPrompt(boxes=torch.tensor([[0.5, 0.0, 1.0, 0.4]]))
INSIDE = VisualPrompt(points=torch.tensor([[0.3, 0.4]]), point_labels=torch.tensor([1]))
MASK = VisualPrompt(masks=quarter())
PROMPTS = {
    "nothing": VisualPrompt(),
    "box": BOX,
    "other box": OTHER_BOX,
    "two boxes": VisualPrompt(boxes=torch.cat([BOX.boxes, OTHER_BOX.boxes])),
    "point": INSIDE,
    "inside and inside": VisualPrompt(points=torch.tensor([[0.3, 0.4], [0.8, 0.1]]), point_labels=torch.tensor([1, 1])),
    "inside and outside": VisualPrompt(
        points=torch.tensor([[0.3, 0.4], [0.8, 0.1]]), point_labels=torch.tensor([1, 0])
    ),
    "outside and inside": VisualPrompt(
        points=torch.tensor([[0.3, 0.4], [0.8, 0.1]]), point_labels=torch.tensor([0, 1])
    ),
    "mask": MASK,
    "mirrored mask": VisualPrompt(masks=quarter().flip(2)),
    "two masks": VisualPrompt(masks=torch.cat([quarter(), quarter().flip(2)])),
    "all": VisualPrompt(BOX.boxes, INSIDE.points, INSIDE.point_labels, MASK.masks),
}


def query(*prompts: VisualPrompt, text: str = "find it") -> EmbeddingInput:
    return EmbeddingInput(text, (make_image(0),), prompts[0], ("a",), (), prompts[1:])


def rows() -> list[EmbeddingInput]:
    """With images and without, prompted and not, several regions and several images."""
    several = EmbeddingInput("which of these", (make_image(1), make_image(0)), BOX, ("b", "a"), (), (MASK,))
    return [
        EmbeddingInput("a cat"),
        *(query(prompt) for prompt in PROMPTS.values()),
        query(BOX, MASK, INSIDE),
        EmbeddingInput("a much longer text, with no image beside it"),
        several,
        EmbeddingInput("look at this image", (make_image(1),), image_keys=("b",)),
    ]


def embed(model: Virtue, *items: EmbeddingInput) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(model.collator.encoder_batch(items))


def test_a_row_in_any_batch_is_itself_alone(model):
    batch = model.collator.encoder_batch(rows())
    assert len(batch.images) == 2 and len(batch.prompts) == len(PROMPTS) + 3 + 3 + 1
    with torch.no_grad():
        together = model.encode(batch)
        chunks = torch.cat([model.encode(chunk) for chunk in batch.split(4)])
        backwards = model.encode(batch.select(range(len(batch))[::-1])).flip(0)
    alone = torch.cat([embed(model, row) for row in rows()])
    assert max((found - alone).abs().max() for found in (together, chunks, backwards)) < 1e-5


def test_every_prompt_moves_the_embedding_its_own_way(model):
    embeddings = embed(model, *(query(prompt) for prompt in PROMPTS.values()))
    distances = torch.cdist(embeddings.double(), embeddings.double()) + torch.eye(len(PROMPTS))
    assert distances.min() > 1e-4, [list(PROMPTS)[index] for index in divmod(int(distances.argmin()), len(PROMPTS))]


def test_each_region_has_segment_tokens_of_its_own(model):
    """Two regions are not one region of two boxes; their order is that of the prompts."""
    batch = model.collator.encoder_batch([query(BOX, OTHER_BOX), query(PROMPTS["two boxes"])])
    assert batch.prompt_rows.tolist() == [0, 0, 1] and batch.use_rows.tolist() == [0, 1]
    one, both, swapped, joint = embed(
        model, query(BOX), query(BOX, OTHER_BOX), query(OTHER_BOX, BOX), query(PROMPTS["two boxes"])
    )
    assert min((both - other).norm() for other in (one, swapped, joint)) > 1e-4


def test_segment_tokens_stand_in_front_of_their_row(model):
    batch = model.collator.encoder_batch([query(BOX, MASK), query(BOX), EmbeddingInput("a cat")])
    tokens = model.connector(model.segment(batch)).tokens
    read = model.fusion.backbone.embed(
        batch, [torch.zeros(int((batch.input_ids[0] == model.fusion.backbone.processor.image_id).sum()), 64)] * 2
    )
    sequence = read.prepend(tokens, batch.prompt_rows)
    assert sequence.attention_mask[:, : 2 * TOKENS].sum(dim=1).tolist() == [2 * TOKENS, TOKENS, 0]
    assert torch.equal(sequence.embeds[0, : 2 * TOKENS], tokens[:2].flatten(0, 1)) and torch.equal(
        sequence.embeds[1, TOKENS : 2 * TOKENS], tokens[2]
    )


@pytest.mark.parametrize("grid_size", [1, 2, 5])
def test_the_grid_of_points_has_the_size_that_is_set(grid_size):
    model = virtue(sam2, grid_size=grid_size)
    torch.testing.assert_close(embed(model, query(VisualPrompt())), embed(model, query(grid_points(grid_size))))


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(VirtueError, match="grid_size is 0"):
        Sam2PromptEncoder(grid_size=0)


def test_an_image_without_a_prompt_may_go_without_segment_tokens():
    model = virtue(sam2, segment_unprompted=False)
    items = [query(VisualPrompt()), query(BOX), EmbeddingInput("a cat"), replace(rows()[-2], extra_prompts=())]
    batch = model.collator.encoder_batch(items)
    assert batch.prompt_rows.tolist() == [1, 3] and batch.use_rows.tolist() == [0, 1, 3, 3]
    with torch.no_grad():
        without = model.fusion(model.collator.encoder_batch(items[:1]))
    together = embed(model, *items)
    torch.testing.assert_close(together[:1], without, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, torch.cat([embed(model, item) for item in items]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:2], embed(virtue(sam2), items[1]), atol=1e-5, rtol=0)


def test_the_segmentation_model_reads_only_images_that_are_pointed_at(monkeypatch):
    model, read = virtue(sam2, segment_unprompted=False), []
    encode = model.segmentation.backbone.image_features
    monkeypatch.setattr(
        model.segmentation.backbone, "image_features", lambda pixels: read.append(len(pixels)) or encode(pixels)
    )
    embed(model, query(BOX), EmbeddingInput("look", (make_image(1),), image_keys=("b",)))
    assert read == [1]


@pytest.mark.parametrize(
    "item",
    [EmbeddingInput("text", prompt=BOX), EmbeddingInput("text", extra_prompts=(MASK,))],
    ids=["prompt", "further prompt"],
)
def test_a_prompt_without_an_image_is_one_line(item):
    with pytest.raises(
        VirtueError,
        match=r"^row 1 has a visual prompt but no image to point at: add the image, or leave the prompt out$",
    ):
        virtue(sam2).collator.encoder_batch([EmbeddingInput("a cat"), item])


def test_every_region_is_told_in_words_and_moved_into_the_frame():
    item = EmbeddingInput(
        "find it",
        (torch.zeros(3, 100, 200, dtype=torch.uint8),),
        BOX,
        (),
        (),
        (INSIDE, MASK, PROMPTS["inside and outside"]),
    )
    assert VirtueFormatter().text(item).splitlines()[2:] == [
        "Referring object bbox: [20, 20, 120, 90]",
        "Referring object point: (60, 40)",
        "Referring object point: (60, 40)",
    ]
    model = virtue(sam2)
    model.formatter = PublishedFormatter(prompt_frame="canvas", num_segment_tokens=TOKENS)
    batch = model.collator.encoder_batch([item, EmbeddingInput("a cat")])
    torch.testing.assert_close(batch.prompts.prompts[1].points * CANVAS, torch.tensor([[60.0, 40.0]]))
    assert batch.position_ids[0, :, 0].tolist() == [4 * TOKENS, 0]
