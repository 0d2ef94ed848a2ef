"""The patches of the Qwen-VLs against transformers' image processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from virtue_pl.backbones.vlm.qwen_patches import FlatPatchEmbed, QwenPatches
from virtue_pl.preprocessing.images import resize_bicubic, smart_size

PROCESSORS: dict[str, dict[str, Any]] = {
    "Qwen2-VL": {},
    "Qwen3-VL": {"patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "one frame, no merging": {"patch_size": 8, "merge_size": 1, "temporal_patch_size": 1, "rescale_factor": 1 / 128},
}


def films(patches: torch.Tensor, frames: int) -> torch.Tensor:
    """Patches as transformers has them: each colour's values once for each frame."""
    return patches.unflatten(1, (3, 1, -1)).expand(-1, -1, frames, -1).flatten(1)


def make_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    ).permute(2, 0, 1)


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_equal_to_the_stock_processor_bit_by_bit(name: str) -> None:
    stock = Qwen2VLImageProcessor(**PROCESSORS[name])
    unit = stock.patch_size * stock.merge_size
    images = [
        make_image(2 * unit, 3 * unit),
        make_image(unit, unit),
        make_image(2 * unit, 3 * unit).contiguous(),
        make_image(5 * unit, 2 * unit),
    ]
    expected = stock(images, do_resize=False, return_tensors="pt")
    values, grids = QwenPatches(stock)(images)
    assert values.dtype == torch.float32 and torch.equal(
        films(values, stock.temporal_patch_size), expected["pixel_values"]
    )
    assert torch.equal(grids, expected["image_grid_thw"])


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_patches_are_laid_the_same_way_on_the_cpu_and_on_other_devices(name: str) -> None:
    patches = QwenPatches(Qwen2VLImageProcessor(**PROCESSORS[name]))
    unit = patches.patch_size * patches.merge_size
    normalised = torch.randn(3, 3 * unit, 2 * unit, generator=torch.Generator().manual_seed(0))
    by_rows, by_pixels = (torch.empty(6 * patches.merge_size**2, 3 * patches.patch_size**2) for _ in range(2))
    patches.write_patches_by_row(normalised, by_rows)
    patches.write_patches(normalised, by_pixels)
    assert torch.equal(by_rows, by_pixels)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (75, 50), (90, 200), (130, 97)])
def test_with_the_resize_equal_to_the_processor_of_the_published_weights(height: int, width: int) -> None:
    """That one resizes by Pillow. 56 x 56 and 100 x 100 pixels: some images grow, some shrink."""
    low, high = 56 * 56, 100 * 100
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
    image = make_image(height, width)
    expected = stock(image.numpy(), input_data_format="channels_first", return_tensors="pt")
    values, grids = QwenPatches(stock)([resize_bicubic(image, smart_size((height, width), low, high))])
    assert torch.equal(grids, expected["image_grid_thw"])
    torch.testing.assert_close(films(values, stock.temporal_patch_size), expected["pixel_values"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.0)])
@pytest.mark.parametrize("frames", [1, 2])
def test_one_frames_patches_embed_as_the_convolution_does_a_films(frames: int, dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(0)
    stock = nn.Module()
    stock.proj = nn.Conv3d(3, 32, (frames, 14, 14), stride=(frames, 14, 14)).to(dtype)
    patches = torch.randn(12, 3 * 14 * 14)
    film = films(patches, frames).to(dtype)
    expected = nn.functional.linear(film, stock.proj.weight.flatten(1), stock.proj.bias)
    torch.testing.assert_close(
        stock.proj(film.view(12, 3, frames, 14, 14)).flatten(1), expected, rtol=0, atol=2e-2 if near == 0 else near
    )
    torch.testing.assert_close(FlatPatchEmbed(stock)(film), expected, rtol=0, atol=0)
    found = FlatPatchEmbed(stock)(patches)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=near)
    (gradient,) = torch.autograd.grad(found.square().sum(), stock.proj.weight)
    (of_film,) = torch.autograd.grad(expected.square().sum(), stock.proj.weight)
    torch.testing.assert_close(gradient, of_film)
