from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig, Sam2PromptEncoderConfig

from fixtures.device_work import as_on_a_device, operations
from fixtures.recorded import CANVAS, GOLDEN, cases, replace_first_image
from virtue_pl.backbones.segmentation import hiera
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.segmentation.sam2_weights import load_sam2
from virtue_pl.models.connector import MaskConnector
from virtue_pl.preprocessing.input_formatters import PublishedFormatter
from virtue_pl.types import FeatureWidths, PromptBatch, SegmentFeatures, VirtueError, VisualPrompt

SIZE, DIM = 128, 64
PUBLISHED = GOLDEN / "sam2_image_and_prompts.pt"

BOX = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9]]))
POINTS = VisualPrompt(points=torch.tensor([[0.3, 0.4], [0.8, 0.1], [0.5, 0.5]]), point_labels=torch.tensor([1, 0, 1]))
BOXES_AND_POINT = VisualPrompt(
    boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.4, 0.0, 0.5, 0.3]]),
    points=POINTS.points[:1],
    point_labels=POINTS.point_labels[:1],
)
MASKS = VisualPrompt(masks=torch.stack([torch.eye(40).bool(), torch.eye(40).bool().flip(0)]))
PROMPTS = {"box": BOX, "points": POINTS, "boxes and point": BOXES_AND_POINT, "masks": MASKS, "none": VisualPrompt()}


def tiny(weights: str | Path | None = None, predict_masks: bool = False, image_size: int = SIZE) -> Sam2Backbone:
    """The sizes of the recorded model."""
    return Sam2Backbone(
        weights, 16, 2, (1, 2, 3, 1), (4,), embed_dim=DIM, image_size=image_size, predict_masks=predict_masks
    ).eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sam2Model, Path]:
    """transformers' own model at those sizes, with random weights, and its folder."""
    torch.manual_seed(0)
    prompts = Sam2PromptEncoderConfig(hidden_size=DIM, image_size=SIZE)
    vision = tiny().vision_encoder.config
    vision.backbone_feature_sizes = [[SIZE // stride] * 2 for stride in (4, 8, 16)]
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=Sam2MaskDecoderConfig(hidden_size=DIM)
    )
    model = Sam2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
    model.mask_decoder.dynamic_multimask_via_stability = False
    folder = tmp_path_factory.mktemp("sam2")
    model.save_pretrained(folder)
    return model, folder


def batch(*prompts: VisualPrompt) -> PromptBatch:
    return PromptBatch(prompts, torch.zeros(len(prompts), dtype=torch.long))


def canvas(number: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, SIZE, SIZE), dtype=torch.uint8)


@pytest.mark.parametrize("name", replace_first_image())
def test_prompt_tokens_are_the_published_ones(name):
    tokens = Sam2PromptEncoder(PUBLISHED, DIM, CANVAS)(batch(cases()[name].prompt))
    torch.testing.assert_close(tokens.sparse, cases()[name].outputs["sam_sparse"], atol=1e-5, rtol=0)
    assert tokens.valid.all() and tokens.dense.shape == (1, DIM, 64, 64)


@pytest.mark.parametrize("predict_masks", [False, True])
def test_a_hub_folder_gives_what_transformers_own_model_gives(whole, predict_masks):
    model, folder = whole
    backbone, encoder = tiny(folder, predict_masks), Sam2PromptEncoder(folder, DIM, SIZE)
    pixels, prompt = canvas(), POINTS
    with torch.no_grad():
        unit = (pixels / 255 - backbone.mean) / backbone.std
        levels = model.vision_encoder(unit).fpn_hidden_states
        expected = model(
            unit, prompt.points[None, None] * SIZE, prompt.point_labels[None, None], multimask_output=False
        ).pred_masks[0]
        sparse, dense = model.prompt_encoder(
            prompt.points[None, None] * SIZE, prompt.point_labels[None, None], None, None
        )
        own = torch.cat(
            [
                model.mask_decoder.obj_score_token.weight,
                model.mask_decoder.iou_token.weight,
                model.mask_decoder.mask_tokens.weight,
            ]
        )
        image, positions = (
            levels[2] + model.no_memory_embedding.reshape(1, -1, 1, 1),
            model.get_image_wide_positional_embeddings(),
        )
        _, keys = model.mask_decoder.transformer(
            torch.cat([own[None, None], sparse], dim=2), image + dense, positions, attention_similarity=None
        )
        features = backbone.image_features(pixels)
        found = backbone(features, encoder(batch(prompt)))
    torch.testing.assert_close(features[-1], levels[2])
    torch.testing.assert_close(found.image, image)
    torch.testing.assert_close(found.image_positions, positions[0])
    torch.testing.assert_close(found.embedding.flatten(2).transpose(1, 2), keys[:, 0])
    if predict_masks:
        torch.testing.assert_close(found.mask_logits, expected[:, 0], atol=1e-4, rtol=1e-4)
    else:
        assert found.mask_logits is None


def test_original_names_are_renamed_and_nothing_is_left_over(whole):
    """The recorded checkpoint has no mask decoder: what is missing is named."""
    backbone = tiny()
    load_sam2(
        {"vision_encoder.": backbone.vision_encoder, "no_memory_embedding": backbone.no_memory_embedding}, PUBLISHED
    )
    assert backbone.no_memory_embedding.abs().sum() > 0
    with pytest.raises(VirtueError, match=r"sam2_image_and_prompts.pt lacks mask_decoder.conv_s0.bias"):
        tiny(PUBLISHED)


@pytest.mark.parametrize("name", ["image_noprompt", "image_point"])
def test_the_pyramid_is_the_published_one(name):
    backbone = tiny(image_size=CANVAS)
    load_sam2(
        {"vision_encoder.": backbone.vision_encoder, "no_memory_embedding": backbone.no_memory_embedding}, PUBLISHED
    )
    (level,) = backbone.image_features(PublishedFormatter().segmentation_pixels(cases()[name].images[0], CANVAS)[None])
    torch.testing.assert_close(level[:, :, ::4, ::4], cases()[name].outputs["sam_fpn_last_s4"], atol=2e-5, rtol=0)


def test_other_weights_are_refused_in_one_line(tmp_path):
    with pytest.raises(
        VirtueError,
        match=r"prompt_encoder.shared_embedding.positional_embedding in .* is \[2, 32\], expected \[2, 16\]",
    ):
        Sam2PromptEncoder(PUBLISHED, 32, SIZE)
    torch.save(
        {"model": {**torch.load(PUBLISHED, weights_only=True)["model"], "sam_prompt_encoder.new": torch.zeros(1)}},
        tmp_path / "new.pt",
    )
    with pytest.raises(VirtueError, match=r"new.pt has an unknown prompt_encoder.new"):
        Sam2PromptEncoder(tmp_path / "new.pt", DIM, SIZE)
    with pytest.raises(VirtueError, match=r"away.pt is not there"):
        Sam2PromptEncoder(tmp_path / "away.pt")
    with pytest.raises(VirtueError, match=r"the folder .* is not there"):
        Sam2PromptEncoder(tmp_path / "away")


def test_a_prompt_does_not_depend_on_the_others_and_reads_its_own_image(whole):
    backbone, encoder = tiny(whole[1], predict_masks=True), Sam2PromptEncoder(whole[1], DIM, SIZE)
    images, owners = canvas(3), torch.tensor([2, 0, 1, 0, 2])
    with torch.no_grad():
        together = backbone(backbone.image_features(images), encoder(PromptBatch(tuple(PROMPTS.values()), owners)))
        for row, (prompt, image) in enumerate(zip(PROMPTS.values(), owners.tolist(), strict=True)):
            alone = backbone(backbone.image_features(images[image : image + 1]), encoder(batch(prompt)))
            for field in ("embedding", "image", "mask_logits"):
                torch.testing.assert_close(
                    getattr(together, field)[row], getattr(alone, field)[0], rtol=1e-4, atol=1e-5
                )


def test_every_prompt_has_one_padding_point_and_means_something_else(whole):
    backbone, encoder = tiny(whole[1]), Sam2PromptEncoder(whole[1], DIM, SIZE)
    tokens = encoder(batch(*PROMPTS.values()))
    assert tokens.valid.sum(dim=1).tolist() == [3, 4, 6, 1, 10]
    with torch.no_grad():
        embeddings = backbone(backbone.image_features(canvas()), tokens).embedding.flatten(1)
    assert (torch.cdist(embeddings, embeddings) + torch.eye(5)).min() > 1e-3


def test_no_prompts_at_all(whole):
    backbone, encoder = tiny(whole[1], predict_masks=True), Sam2PromptEncoder(whole[1], DIM, SIZE)
    found = backbone(backbone.image_features(canvas()), encoder(batch()))
    assert (
        found.embedding.shape == (0, DIM, 8, 8)
        and found.mask_logits is not None
        and found.mask_logits.shape == (0, 32, 32)
    )


def test_what_is_stored_is_frozen_and_known_by_its_fingerprint(whole):
    backbone = tiny(whole[1], predict_masks=True)
    assert not any(feature.requires_grad for feature in backbone.image_features(canvas()))
    assert [tuple(feature.shape[1:]) for feature in backbone.image_features(canvas())] == [
        (8, 32, 32),
        (16, 16, 16),
        (64, 8, 8),
    ]
    assert backbone.fingerprint() == tiny(whole[1], predict_masks=True).fingerprint() != tiny(whole[1]).fingerprint()


def test_a_connector_that_reads_masks_says_what_to_change(whole):
    nothing = torch.zeros(1, DIM, 8, 8)
    with pytest.raises(VirtueError, match="set its predict_masks to true"):
        MaskConnector(FeatureWidths(DIM, DIM), 32)(SegmentFeatures(nothing, nothing, None, nothing[0]))


@pytest.mark.parametrize("size", [100, 1040])
def test_the_canvas_must_be_tiled(size):
    with pytest.raises(VirtueError, match=f"image_size is {size}, expected a multiple of 32"):
        Sam2PromptEncoder(None, DIM, size)


def test_the_image_encoder_has_four_stages():
    with pytest.raises(VirtueError, match="expected four each"):
        Sam2Backbone(None, 16, 2, (1, 2, 3), (4,), embed_dim=DIM, image_size=SIZE)


def base_plus() -> Sam2Backbone:
    """The released size on a device that computes nothing."""
    with torch.device("meta"):
        return Sam2Backbone(predict_masks=True)


def test_a_device_is_given_as_much_as_by_transformers_and_no_more_for_eight_images():
    backbone = base_plus()
    pixels = torch.zeros(8, 3, 1024, 1024, dtype=torch.uint8, device="meta")
    counts = {number: operations(lambda number=number: backbone.image_features(pixels[:number])) for number in (1, 8)}
    with torch.no_grad():
        stock = operations(lambda: backbone.vision_encoder(torch.zeros(1, 3, 1024, 1024, device="meta")))
    assert counts[1] <= 1.2 * stock and counts[8] <= 1.05 * counts[1]
    assert [level.shape for level in backbone.image_features(pixels)] == [
        (8, 32, 256, 256),
        (8, 64, 128, 128),
        (8, 256, 64, 64),
    ]


@pytest.mark.parametrize("predict_masks", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_the_same_one_by_one_in_tiles_and_all_together(monkeypatch, predict_masks, dtype):
    torch.manual_seed(0)
    backbone = tiny(predict_masks=predict_masks)
    pixels = canvas(5).to(dtype) / (1 if dtype == torch.uint8 else 255)
    pixels = pixels.to(dtype)
    in_tiles = backbone.image_features(pixels)
    for limit in (hiera.BATCH_PIXELS, 2 * SIZE**2, 1):
        monkeypatch.setattr(hiera, "BATCH_PIXELS", limit)
        with as_on_a_device():
            together = backbone.image_features(pixels)
        for ours, theirs in zip(together, in_tiles, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
