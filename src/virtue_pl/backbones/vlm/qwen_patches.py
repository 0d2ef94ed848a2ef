"""Resized images to the patches that a Qwen-VL's tower reads: transformers' image processor without its detours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn


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

    def __init__(self, stock: Any) -> None:
        levels = 1.0 / stock.rescale_factor
        self.mean = (torch.tensor(stock.image_mean) * levels)[:, None, None]
        self.std = (torch.tensor(stock.image_std) * levels)[:, None, None]
        self.patch_size: int = stock.patch_size
        self.merge_size: int = stock.merge_size

    def __call__(
        self, images: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[Float[Tensor, "patches values"], Int[Tensor, "images 3"]]:
        """Return the patches of all images, one after the other, and each image's number of them in time, down, across.

        Heights and widths are multiples of `patch_size` x `merge_size`. Patches that become one token follow each
        other; a patch's values are ordered by colour, row, column.
        """
        grids = [(1, image.shape[1] // self.patch_size, image.shape[2] // self.patch_size) for image in images]
        counts = [down * across for _, down, across in grids]
        values = torch.empty(sum(counts), 3 * self.patch_size**2, device=images[0].device)
        for image, output in zip(images, values.split(counts), strict=True):
            self.write_image(image, output)
        return values, torch.tensor(grids, device=values.device)

    def write_image(self, image: UInt8[Tensor, "3 height width"], output: Float[Tensor, "patches values"]) -> None:
        """Write one image's patches to `output`, on the CPU a row of tokens at a time, which fits a core's cache."""
        device = image.device
        mean, std = self.mean.to(device), self.std.to(device)
        on_cpu = device.type == "cpu"
        write = self.write_patches_by_row if on_cpu else self.write_patches
        height = self.patch_size * self.merge_size if on_cpu else image.shape[1]
        patches = height // self.patch_size * (image.shape[2] // self.patch_size)
        for strip, part in zip(image.split(height, dim=1), output.split(patches), strict=True):
            # contiguous, colour by colour, whatever the image's memory layout
            normalised = torch.empty(strip.shape, device=device).copy_(strip)
            write(normalised.sub_(mean).div_(std), part)

    def write_patches(
        self, normalised: Float[Tensor, "3 height width"], output: Float[Tensor, "patches values"]
    ) -> None:
        """Write the values to `output` in the order of their patches, on any device."""
        patch, merge = self.patch_size, self.merge_size
        rows, columns = normalised.shape[1] // (patch * merge), normalised.shape[2] // (patch * merge)
        cut = normalised.view(3, rows, merge, patch, columns, merge, patch).permute(1, 4, 2, 5, 0, 3, 6)
        output.view(rows, columns, merge, merge, 3, patch, patch).copy_(cut)

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
