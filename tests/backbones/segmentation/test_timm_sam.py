from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from fixtures.tiny_models import VISION_MODEL, save_vision_model
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import FeatureWidths, PromptBatch, PromptTokens, SegmentFeatures, VirtueError, VisualPrompt

SIZE, DIM = 64, 32

BOX = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9]]))
POINTS = VisualPrompt(points=torch.tensor([[0.3, 0.4], [0.8, 0.1], [0.5, 0.5]]), point_labels=torch.tensor([1, 0, 1]))
BOX_AND_POINT = VisualPrompt(boxes=BOX.boxes, points=POINTS.points[:1], point_labels=POINTS.point_labels[:1])
MASK = VisualPrompt(masks=torch.eye(40).bool()[None])
BOX_AND_MASKS = VisualPrompt(boxes=BOX.boxes, masks=torch.stack([torch.eye(40).bool(), torch.eye(40).bool().flip(0)]))
TWO_BOXES = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.4, 0.0, 0.5, 0.3]]))
PROMPTS = {
    "box": BOX,
    "points": POINTS,
    "both": BOX_AND_POINT,
    "mask": MASK,
    "box and masks": BOX_AND_MASKS,
    "two boxes": TWO_BOXES,
    "none": VisualPrompt(),
}


@pytest.fixture(scope="module")
def encoder() -> TimmSamPromptEncoder:
    """segment-anything's alone."""
    torch.manual_seed(0)
    return TimmSamPromptEncoder(DIM, SIZE).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dense_hints"])
def pair(request: pytest.FixtureRequest) -> tuple[TimmSamPromptEncoder, TimmSamBackbone]:
    """A prompt encoder and the backbone that reads it."""
    torch.manual_seed(0)
    backbone = TimmSamBackbone(VISION_MODEL, None, DIM, SIZE, num_heads=2, mlp_dim=64, dense_hints=request.param)
    return TimmSamPromptEncoder(DIM, SIZE, dense_hints=request.param).eval(), backbone.eval()


def batch(*prompts: VisualPrompt) -> PromptBatch:
    return PromptBatch(prompts, torch.zeros(len(prompts), dtype=torch.long))


def segment_anything(encoder: TimmSamPromptEncoder, prompt: VisualPrompt) -> tuple[torch.Tensor, torch.Tensor]:
    """What segment-anything's own forward gives for the prompt alone; it takes one box and one mask."""
    points = (prompt.points[None] * SIZE, prompt.point_labels[None]) if len(prompt.points) else None
    boxes = prompt.boxes * SIZE if len(prompt.boxes) else None
    union = prompt.masks.any(dim=0)[None, None].float()
    size = encoder.encoder.mask_input_size
    masks = (
        torch.nn.functional.interpolate(union, size=size, mode="bilinear", antialias=True)
        if len(prompt.masks)
        else None
    )
    sparse, dense = encoder.encoder(points, boxes, masks)
    return sparse[0], dense[0]


@pytest.mark.parametrize("name", ["box", "points", "both", "mask", "box and masks"])
def test_a_row_is_what_segment_anything_gives_for_it_alone(encoder, name):
    sparse, dense = segment_anything(encoder, PROMPTS[name])
    tokens = encoder(batch(*PROMPTS.values()))
    row = list(PROMPTS).index(name)
    torch.testing.assert_close(tokens.sparse[row][tokens.valid[row]], sparse)
    torch.testing.assert_close(tokens.dense[row], dense)


def test_several_boxes_are_each_encoded_like_one(encoder):
    tokens = encoder(batch(TWO_BOXES))
    corners = [segment_anything(encoder, VisualPrompt(boxes=box[None]))[0] for box in TWO_BOXES.boxes]
    torch.testing.assert_close(tokens.sparse[0], torch.cat(corners))


def test_no_prompt_is_a_grid_of_points(encoder):
    torch.testing.assert_close(encoder(batch(VisualPrompt())).sparse, encoder(batch(grid_points(3))).sparse)


@pytest.mark.parametrize("dense_hints", [False, True])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_row_does_not_depend_on_the_others(dense_hints, name):
    encoder = TimmSamPromptEncoder(DIM, SIZE, dense_hints=dense_hints)
    together, alone = encoder(batch(*PROMPTS.values())), encoder(batch(PROMPTS[name]))
    row, count = list(PROMPTS).index(name), alone.valid.sum()
    assert together.valid[row].sum() == count and together.valid[row, :count].all()
    torch.testing.assert_close(together.sparse[row, :count], alone.sparse[0])
    torch.testing.assert_close(together.dense[row], alone.dense[0])


@pytest.mark.parametrize("prompts", [(), (MASK,), (BOX, POINTS), tuple(PROMPTS.values())])
def test_every_batch_reaches_every_parameter(prompts):
    """Or distributed training waits for gradients that never come."""
    encoder = TimmSamPromptEncoder(DIM, SIZE, dense_hints=True)
    tokens = encoder(batch(*prompts))
    assert tokens.sparse.shape[0] == tokens.dense.shape[0] == len(prompts) and tokens.dense.shape[1:] == (DIM, 4, 4)
    (tokens.sparse.sum() + tokens.dense.sum()).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_canvas_must_be_tiled():
    with pytest.raises(VirtueError, match="image_size is 100, expected a multiple of 16"):
        TimmSamPromptEncoder(DIM, 100)


def pixels(number: int) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, SIZE, SIZE), dtype=torch.uint8)


def segment(backbone: TimmSamBackbone, images: torch.Tensor, tokens: PromptTokens) -> SegmentFeatures:
    return backbone(backbone.image_features(images), tokens)


def test_shapes_and_widths(pair):
    encoder, backbone = pair
    features = segment(
        backbone, pixels(2), encoder(PromptBatch(tuple(PROMPTS.values()), torch.tensor([0, 1, 0, 1, 0, 1, 0])))
    )
    assert features.embedding.shape == (7, DIM, 4, 4)
    assert features.image.shape == (7, backbone.widths.image, 4, 4)
    assert features.mask_logits.shape == (7, 16, 16)
    assert features.image_positions.shape == (DIM, 4, 4)
    assert backbone.widths == FeatureWidths(DIM, sum(backbone.trunk.channels[-2:]))


def test_a_prompt_does_not_depend_on_the_others_and_reads_its_own_image(pair):
    """segment-anything's attention has no mask, so rows of another token count must not share a forward with
    padding.
    """
    encoder, backbone = pair
    images = pixels(3)
    image_index = torch.tensor([2, 0, 1, 0, 2, 1, 0])
    with torch.no_grad():
        together = segment(backbone, images, encoder(PromptBatch(tuple(PROMPTS.values()), image_index)))
        for row, (prompt, index) in enumerate(zip(PROMPTS.values(), image_index.tolist(), strict=True)):
            alone = segment(backbone, images[index : index + 1], encoder(batch(prompt)))
            for field in ("embedding", "image", "mask_logits"):
                torch.testing.assert_close(
                    getattr(together, field)[row], getattr(alone, field)[0], rtol=1e-4, atol=1e-5
                )


def test_the_embedding_is_the_image_side_of_the_two_way_transformer(pair):
    encoder, backbone = pair
    features, tokens = backbone.image_features(pixels(1)), encoder(batch(BOX))
    found = backbone(features, tokens)
    mask_tokens, keys = backbone.transformer_inputs(found.image, backbone.neck(features[backbone.fine :]), tokens)
    _, image_tokens = backbone.transformer(
        keys, tokens.image_positions[None], torch.cat([mask_tokens[:, None], tokens.sparse], dim=1)
    )
    torch.testing.assert_close(found.embedding.flatten(2).transpose(1, 2), image_tokens)


def test_no_prompts_at_all(pair):
    encoder, backbone = pair
    features = segment(backbone, pixels(1), encoder(batch()))
    assert features.mask_logits.shape == (0, 16, 16) and features.embedding.shape == (0, DIM, 4, 4)


def test_only_the_trunk_is_frozen(pair):
    encoder, backbone = pair
    backbone.train()
    assert not any(module.training for module in backbone.trunk.modules())
    assert not any(feature.requires_grad for feature in backbone.image_features(pixels(1)))
    backbone.zero_grad()
    segment(backbone, pixels(1), encoder(batch(BOX))).mask_logits.sum().backward()
    silent = {name for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert silent == {f"trunk.{name}" for name, _ in backbone.trunk.named_parameters()}
    backbone.eval()


@pytest.mark.parametrize("trunk", [VISION_MODEL, "test_convnext", "test_resnet"])
@pytest.mark.parametrize("finest_stride", [4, 8, 16])
def test_another_trunk_is_one_word(encoder, trunk, finest_stride):
    backbone = TimmSamBackbone(trunk, None, DIM, SIZE, num_heads=2, mlp_dim=64, finest_stride=finest_stride)
    features = backbone.image_features(pixels(1))
    assert [SIZE // feature.shape[-1] for feature in features] == [
        stride for stride in (4, 8, 16, 32) if stride >= finest_stride
    ]
    assert backbone(features, encoder(batch(BOX))).mask_logits.shape == (1, 16, 16)


def test_hints_on_one_side_only(encoder):
    backbone = TimmSamBackbone(VISION_MODEL, None, DIM, SIZE, num_heads=2, dense_hints=True)
    with pytest.raises(VirtueError, match="set dense_hints alike in both"):
        segment(backbone, pixels(1), encoder(batch(BOX)))


def test_an_unknown_trunk():
    with pytest.raises(VirtueError, match="timm has no model 'efficient_lite'"):
        TimmSamBackbone("efficient_lite")


def test_trunk_weights_are_read_by_timms_names(tmp_path):
    path = save_vision_model(tmp_path / "trunk.safetensors", seed=3)
    torch.manual_seed(3)
    expected = timm.create_model(VISION_MODEL).state_dict()
    state = TimmSamBackbone(VISION_MODEL, path, DIM, SIZE, num_heads=2).trunk.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(VirtueError, match="lacks"):
        TimmSamBackbone(VISION_MODEL, tmp_path / "other.safetensors", DIM, SIZE)
