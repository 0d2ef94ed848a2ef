"""Resized images to the patches that a Qwen-VL's tower reads: transformers' image processor without its detours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from virtue_pl.backbones import cpu_tiles
from virtue_pl.types.layout import group_by_owner


class QwenPatches:
    """Normalises images and cuts them in patches, bit by bit as the model's image processor does without its resize.

    Only equal frames differ: that processor makes a still a film, and repeats a patch's values for each of the frames
    that the tower's kernel spans. Here they are written once, and `FlatPatchEmbed` reads them so.

    Args:
        stock: the model's image processor, whose sizes, mean, standard deviation and scale are used.

    Example:
        >>> from types import SimpleNamespace
        >>> sizes = {"patch_size": 14, "merge_size": 2, "rescale_factor": 1 / 255}
        >>> stock = SimpleNamespace(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        >>> values, grids = QwenPatches(stock)([torch.zeros(3, 28, 56, dtype=torch.uint8)])
        >>> tuple(values.shape), grids.tolist()
        ((8, 588), [[1, 2, 4]])
    """

    not_in_fingerprint = frozenset({"scales"})

    def __init__(self, stock: Any) -> None:
        levels = 1.0 / stock.rescale_factor
        self.mean = (torch.tensor(stock.image_mean) * levels)[:, None, None]
        self.std = (torch.tensor(stock.image_std) * levels)[:, None, None]
        self.scales: dict[torch.device, tuple[Tensor, Tensor]] = {}
        """Mean and standard deviation on each device that has read images."""
        self.patch_size: int = stock.patch_size
        self.merge_size: int = stock.merge_size

    def __call__(
        self, images: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[Float[Tensor, "patches values"], Int[Tensor, "images 3"]]:
        """Return the patches of all images, one after the other, and, on the host, their numbers in time, down, across.

        Heights and widths are multiples of `patch_size` x `merge_size`. Patches that become one token follow each
        other; a patch's values are ordered by colour, row, column.
        """
        grids = [(1, image.shape[1] // self.patch_size, image.shape[2] // self.patch_size) for image in images]
        cut = self.cut_each if cpu_tiles.uses_tiles(images[0].device) else self.cut_together
        return cut(images), torch.tensor(grids)

    def cut_each(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> Float[Tensor, "patches values"]:
        """Return the patches of all images on a CPU, a row of tokens at a time, which fits a core's cache."""
        area = self.patch_size**2
        counts = [image.shape[1] * image.shape[2] // area for image in images]
        values = torch.empty(sum(counts), 3 * area)
        for image, output in zip(images, values.split(counts), strict=True):
            height = self.patch_size * self.merge_size
            patches = height * image.shape[2] // area
            for strip, part in zip(image.split(height, dim=1), output.split(patches), strict=True):
                self.write_patches_by_row(self.normalise(strip), part)
        return values

    def cut_together(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> Float[Tensor, "patches values"]:
        """Return the patches of all images on any device, those of images of one size together."""
        area = self.patch_size**2
        found: dict[int, Tensor] = {}
        for numbers in group_by_owner([image.shape for image in images]).values():
            same = torch.stack([images[number] for number in numbers])
            output = same.new_empty(len(same), same[0, 0].numel() // area, 3 * area, dtype=torch.float32)
            self.write_patches(self.normalise(same), output)
            found.update(zip(numbers, output.unbind(), strict=True))
        return torch.cat([found[number] for number in range(len(images))])

    def normalise(self, images: UInt8[Tensor, "*images 3 height width"]) -> Float[Tensor, "*images 3 height width"]:
        """Return the values that the tower reads, contiguous, colour by colour, whatever the images' memory layout."""
        if images.device not in self.scales:
            self.scales[images.device] = (self.mean.to(images.device), self.std.to(images.device))
        mean, std = self.scales[images.device]
        normalised = torch.empty(images.shape, device=images.device).copy_(images)
        return normalised.sub_(mean).div_(std)

    def write_patches(
        self,
        normalised: Float[Tensor, "*images 3 height width"],
        output: Float[Tensor, "*images patches values"],
    ) -> None:
        """Write the values to `output` in the order of their patches, on any device."""
        patch, merge = self.patch_size, self.merge_size
        rows, columns = normalised.shape[-2] // (patch * merge), normalised.shape[-1] // (patch * merge)
        cut = normalised.view(-1, 3, rows, merge, patch, columns, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
        output.view(-1, rows, columns, merge, merge, 3, patch, patch).copy_(cut)

    def write_patches_by_row(
        self, normalised: Float[Tensor, "3 height width"], output: Float[Tensor, "patches values"]
    ) -> None:
        """Write the same on the CPU, where numpy moves a row of a patch as one element.

        torch spends more on a row's start than on its 14 or 16 pixels.
        """
        patch, merge = self.patch_size, self.merge_size
        rows, columns = normalised.shape[1] // (patch * merge), normalised.shape[2] // (patch * merge)
        row = np.dtype((np.void, patch * normalised.itemsize))
        cut = normalised.numpy().view(row).reshape(3, rows, merge, patch, columns, merge).transpose(1, 4, 2, 5, 0, 3)
        output.numpy().view(row).reshape(rows, columns, merge, merge, 3, patch)[...] = cut


class FlatPatchEmbed(nn.Module):
    """A tower's own patch embedding, whose kernel is as large as its stride, as the one matrix product that it is.

    Reads the patches of one frame as those of a film of equal frames: in float32 the frames of the kernel are summed,
    which is half the product; in narrower types, in which that sum would be rounded once more, the patches are
    repeated. A film's patches, colour by colour and frame by frame, are read as the tower reads them. The map keeps its
    name in checkpoints, `proj`.

    Args:
        stock: the tower's embedding, a convolution `proj` over frames, rows, and columns.

    Example:
        >>> stock = nn.Module()
        >>> stock.proj = nn.Conv3d(3, 8, kernel_size=(2, 14, 14), stride=(2, 14, 14))
        >>> FlatPatchEmbed(stock)(torch.randn(4, 3 * 14 * 14)).shape
        torch.Size([4, 8])
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.proj: nn.Conv3d = stock.proj

    def forward(self, patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches width"]:
        """Return each patch's embedding, of the patches of one frame or of all frames of the kernel."""
        weight = self.proj.weight
        still = patches.shape[1] < weight[0].numel()
        if still and weight.dtype == torch.float32:
            return nn.functional.linear(patches, weight.sum(dim=2).flatten(1), self.proj.bias)
        values = patches.to(weight.dtype)
        if still:
            values = values.unflatten(1, (weight.shape[1], 1, -1)).expand(-1, -1, weight.shape[2], -1).flatten(1)
        return nn.functional.linear(values, weight.flatten(1), self.proj.bias)
