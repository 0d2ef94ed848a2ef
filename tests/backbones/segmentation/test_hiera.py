"""Hiera window by window against transformers' own forward, over windows that nest and that do not."""

from __future__ import annotations

import pytest
import torch

from virtue_pl.backbones.segmentation import hiera
from virtue_pl.backbones.segmentation.hiera import Hiera, leading_windows, max_pool_2x2
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone
from virtue_pl.types import VirtueError

SIZES = {
    "as released": {"blocks": (1, 2, 3, 1), "windows": (8, 4, 14, 7), "global_attention": (4,)},
    "all in windows": {"blocks": (1, 1, 1, 1), "windows": (8, 4, 2, 2), "global_attention": ()},
    "never tiled": {"blocks": (1, 1, 2, 1), "windows": (8, 4, 6, 3), "global_attention": (0,)},
    "narrower soon": {"blocks": (1, 2, 2, 1), "windows": (8, 2, 4, 2), "global_attention": ()},
}


def backbone(name: str, size: int = 128, **settings: object) -> Sam2Backbone:
    torch.manual_seed(0)
    found = Sam2Backbone(None, 16, 2, embed_dim=32, image_size=size, **SIZES[name], **settings).eval()  # type: ignore[arg-type]
    for parameter in found.vision_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize("tile", [64, 2048])
def test_stages_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch, name: str, tile: int) -> None:
    monkeypatch.setattr(hiera, "TILE_TOKENS", tile)
    network = backbone(name).vision_encoder.backbone
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = network(pixels).intermediate_hidden_states
        found = Hiera(network).stages(pixels)
    assert len(found) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_how_many_blocks_stay_inside_the_first_windows() -> None:
    counts = {name: leading_windows(backbone(name).vision_encoder.backbone.blocks, (32, 32)) for name in SIZES}
    assert counts == {"as released": 4, "all in windows": 4, "never tiled": 0, "narrower soon": 2}
    assert leading_windows(backbone("as released").vision_encoder.backbone.blocks, (32, 36)) == 0


def test_images_do_not_depend_on_each_other() -> None:
    model = backbone("as released")
    pixels = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    (together,) = model.image_features(pixels)
    assert torch.equal(together[1:2], model.image_features(pixels[1:2])[0])


def test_positions_are_stretched_once_for_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = backbone("as released").vision_encoder.backbone, []
    original = network._get_pos_embed
    monkeypatch.setattr(network, "_get_pos_embed", lambda size: calls.append(size) or original(size))
    ours = Hiera(network)

    def first_stage(size: int) -> torch.Tensor:
        with torch.no_grad():
            return ours.stages(torch.zeros(1, 3, size, size))[0]

    first = first_stage(128)
    assert torch.equal(first_stage(128), first) and calls == [(32, 32)]
    with torch.no_grad():
        network.pos_embed.add_(1.0)
    assert not torch.equal(first_stage(128), first) and len(calls) == 2
    first_stage(256)
    network.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()})
    assert not first_stage(256).any() and len(calls) == 4
    network.pos_embed.requires_grad_(True)
    assert ours.positions((32, 32)).requires_grad and ours.positions((32, 32)).requires_grad and len(calls) == 6


def test_halving_is_pooling_by_the_maximum() -> None:
    windows = torch.randn(5, 6, 4, 3)
    expected = torch.nn.functional.max_pool2d(windows.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.equal(max_pool_2x2(windows), expected)


def test_frozen_weights_in_bfloat16_are_close() -> None:
    exact, half = backbone("as released"), backbone("as released", dtype="bfloat16")
    half.load_state_dict(exact.state_dict())
    pixels = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    (expected,), (found,) = exact.image_features(pixels), half.image_features(pixels)
    assert found.dtype == torch.bfloat16 and {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.999


def test_another_dtype_is_refused() -> None:
    with pytest.raises(VirtueError, match="dtype is 'int8', expected float32 or bfloat16"):
        backbone("as released", dtype="int8")
