from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything import modeling as sam
from torch import nn

from virtue_pl.backbones.segmentation.sam1 import Sam1Backbone, Sam1PromptEncoder
from virtue_pl.types import PromptBatch, VirtueError, VisualPrompt

SIZE, DIM, GRID_SIZE = 96, 32, 6

BOX = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9]]))
POINTS = VisualPrompt(points=torch.tensor([[0.3, 0.4], [0.8, 0.1], [0.5, 0.5]]), point_labels=torch.tensor([1, 0, 1]))
BOX_AND_POINT = VisualPrompt(boxes=BOX.boxes, points=POINTS.points[:1], point_labels=POINTS.point_labels[:1])
MASK = VisualPrompt(masks=(torch.arange(40) < 20).expand(1, 40, 40))
PROMPTS = {"box": BOX, "points": POINTS, "box and point": BOX_AND_POINT, "mask": MASK, "none": VisualPrompt()}


def tiny(weights: Path | None = None, predict_masks: bool = False) -> Sam1Backbone:
    return Sam1Backbone(weights, 16, 3, 2, (1,), 4, DIM, SIZE, predict_masks).eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[sam.Sam, Path]:
    """segment-anything's own model at those sizes, with random weights, and its checkpoint."""
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-6)
    vit = {"img_size": SIZE, "embed_dim": 16, "depth": 3, "num_heads": 2, "out_chans": DIM, "window_size": 4}
    model = sam.Sam(
        sam.ImageEncoderViT(norm_layer=norm, use_rel_pos=True, global_attn_indexes=(1,), **vit),  # type: ignore[arg-type]
        sam.PromptEncoder(DIM, (GRID_SIZE, GRID_SIZE), (SIZE, SIZE), 16),
        sam.MaskDecoder(transformer_dim=DIM, transformer=sam.TwoWayTransformer(2, DIM, 8, 2048)),
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("sam") / "sam_vit_tiny.pth"
    torch.save(model.state_dict(), path)
    return model, path


def batch(*prompts: VisualPrompt) -> PromptBatch:
    return PromptBatch(prompts, torch.zeros(len(prompts), dtype=torch.long))


def canvas(number: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, SIZE, SIZE), dtype=torch.uint8)


def published(
    model: sam.Sam, pixels: torch.Tensor, prompt: VisualPrompt
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """segment-anything's image embedding, the image side of its two-way transformer, and its first mask."""
    points = (prompt.points[None] * SIZE, prompt.point_labels[None]) if len(prompt.points) else None
    masks = (
        nn.functional.interpolate(prompt.masks[None].float(), (4 * GRID_SIZE,) * 2, mode="bilinear", antialias=True)
        * 20
        - 10
        if len(prompt.masks)
        else None
    )
    sparse, dense = model.prompt_encoder(points, prompt.boxes * SIZE if len(prompt.boxes) else None, masks)
    image = model.image_encoder(model.preprocess(pixels.float()))
    own = torch.cat([model.mask_decoder.iou_token.weight, model.mask_decoder.mask_tokens.weight])[None]
    _, image_tokens = model.mask_decoder.transformer(
        image + dense, model.prompt_encoder.get_dense_pe(), torch.cat([own, sparse], dim=1)
    )
    mask, _ = model.mask_decoder(image, model.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
    return image[0], image_tokens[0].transpose(0, 1).reshape(DIM, GRID_SIZE, GRID_SIZE), mask[0, 0]


@pytest.mark.parametrize("predict_masks", [False, True], ids=["feature", "masks"])
@pytest.mark.parametrize("name", ["box", "points", "box and point", "mask"])
def test_it_gives_what_segment_anything_gives(whole, name, predict_masks):
    model, path = whole
    backbone, encoder, pixels = tiny(path, predict_masks), Sam1PromptEncoder(path, DIM, SIZE), canvas()
    with torch.no_grad():
        image, image_tokens, mask = published(model, pixels, PROMPTS[name])
        found = backbone(backbone.image_features(pixels), encoder(batch(PROMPTS[name])))
    torch.testing.assert_close(found.image[0], image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.embedding[0], image_tokens, atol=1e-5, rtol=1e-5)
    if predict_masks:
        torch.testing.assert_close(found.mask_logits[0], mask, atol=1e-4, rtol=1e-4)
    else:
        assert found.mask_logits is None


def test_a_prompt_does_not_depend_on_the_others_and_reads_its_own_image(whole):
    backbone, encoder = tiny(whole[1], predict_masks=True), Sam1PromptEncoder(whole[1], DIM, SIZE)
    images, owners = canvas(3), torch.tensor([2, 0, 1, 0, 2])
    with torch.no_grad():
        together = backbone(backbone.image_features(images), encoder(PromptBatch(tuple(PROMPTS.values()), owners)))
        for row, (prompt, image) in enumerate(zip(PROMPTS.values(), owners.tolist(), strict=True)):
            alone = backbone(backbone.image_features(images[image : image + 1]), encoder(batch(prompt)))
            for field in ("embedding", "image", "mask_logits"):
                torch.testing.assert_close(
                    getattr(together, field)[row], getattr(alone, field)[0], rtol=1e-4, atol=1e-5
                )


def test_only_what_reaches_the_feature_is_run(whole):
    backbone, encoder = tiny(whole[1]), Sam1PromptEncoder(whole[1], DIM, SIZE)
    run = set()
    for name, module in backbone.mask_decoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: run.add(name))
    backbone(backbone.image_features(canvas()), encoder(batch(BOX)))
    assert run and all(name.startswith("transformer.layers.") for name in run)


def test_no_prompts_at_all(whole):
    backbone, encoder = tiny(whole[1], predict_masks=True), Sam1PromptEncoder(whole[1], DIM, SIZE)
    found = backbone(backbone.image_features(canvas()), encoder(batch()))
    assert found.embedding.shape == (0, DIM, GRID_SIZE, GRID_SIZE) and found.mask_logits.shape == (
        0,
        4 * GRID_SIZE,
        4 * GRID_SIZE,
    )


def test_what_is_stored_is_frozen_and_known_by_its_fingerprint(whole):
    backbone = tiny(whole[1])
    (level,) = backbone.image_features(canvas())
    assert not level.requires_grad and level.shape == (1, DIM, GRID_SIZE, GRID_SIZE)
    assert backbone.fingerprint() == tiny(whole[1]).fingerprint() != tiny().fingerprint()


def test_other_weights_are_refused_in_one_line(whole, tmp_path):
    state = whole[0].state_dict()
    torch.save({**state, "prompt_encoder.new": torch.zeros(1)}, tmp_path / "new.pth")
    torch.save({"model": state}, tmp_path / "nested.pth")
    torch.save(
        {name: tensor for name, tensor in state.items() if name != "mask_decoder.iou_token.weight"},
        tmp_path / "less.pth",
    )
    with pytest.raises(
        VirtueError,
        match=r"new.pth has an unknown prompt_encoder.new, expected the tensors of SAM at the sizes in the config",
    ):
        Sam1PromptEncoder(tmp_path / "new.pth", DIM, SIZE)
    with pytest.raises(VirtueError, match=r"nested.pth has an unknown model, expected the tensors of SAM alone"):
        Sam1PromptEncoder(tmp_path / "nested.pth", DIM, SIZE)
    with pytest.raises(VirtueError, match=r"less.pth lacks mask_decoder.iou_token.weight"):
        tiny(tmp_path / "less.pth")
    with pytest.raises(
        VirtueError, match=r"gaussian_matrix in .* is \[2, 16\], expected \[2, 32\]: the sizes in the config differ"
    ):
        Sam1PromptEncoder(whole[1], 64, SIZE)
    with pytest.raises(VirtueError, match=r"away.pth is not there, expected SAM's checkpoint"):
        Sam1PromptEncoder(tmp_path / "away.pth")


def test_a_pickle_is_not_run(tmp_path):
    class Run:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"prompt_encoder.x": Run()}, tmp_path / "bad.pth")
    with pytest.raises(VirtueError, match=r"bad.pth is no file of weights, or holds more than tensors"):
        Sam1PromptEncoder(tmp_path / "bad.pth", DIM, SIZE)
    assert not (tmp_path / "ran").exists()


def test_the_canvas_must_be_tiled():
    with pytest.raises(VirtueError, match="image_size is 100, expected a multiple of 16"):
        Sam1PromptEncoder(None, DIM, 100)
