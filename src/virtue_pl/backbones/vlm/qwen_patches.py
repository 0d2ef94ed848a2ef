"""Resized images to the patches that a Qwen-VL's tower reads: the pixels of transformers' image processor without its
detours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn


class QwenPatches:
    """Normalises and cuts in patches. Equal to the model's own image processor without its resize, bit by bit, but for
    its equal frames.

    That processor makes a still a film: it repeats a patch's values for each of the frames that the tower's kernel
    spans. Here they are written
    once, and `FlatPatchEmbed` reads them so.

    Args:
        stock: the model's image processor, whose sizes, mean, standard deviation and scale are taken over.
    """

    def __init__(self, stock: Any) -> None:
        levels = 1.0 / stock.rescale_factor
        self.mean = (torch.tensor(stock.image_mean) * levels)[:, None, None]
        self.std = (torch.tensor(stock.image_std) * levels)[:, None, None]
        self.patch: int = stock.patch_size
        self.merge: int = stock.merge_size

    def __call__(
        self, images: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[Float[Tensor, "patches values"], Int[Tensor, "images 3"]]:
        """All images' patches, one image behind the other, and each one's number of them: in time, down, and across.

        Sides are multiples of patch x merge. Patches that become one token are neighbours; a patch's values are colour,
        row, column.
        """
        grids = [(1, image.shape[1] // self.patch, image.shape[2] // self.patch) for image in images]
        counts = [down * across for _, down, across in grids]
        values = torch.empty(sum(counts), 3 * self.patch**2, device=images[0].device)
        for image, place in zip(images, values.split(counts), strict=True):
            self.write(image, place)
        return values, torch.tensor(grids, device=values.device)

    def write(self, image: UInt8[Tensor, "3 height width"], place: Float[Tensor, "patches values"]) -> None:
        """One image's patches, to where they belong. On the CPU a row of tokens at a time, which stays in a core's
        cache until it is laid.
        """
        device = image.device
        mean, std = self.mean.to(device), self.std.to(device)
        lay, height = (self.lay_rows, self.patch * self.merge) if device.type == "cpu" else (self.lay, image.shape[1])
        patches = height // self.patch * (image.shape[2] // self.patch)
        for band, part in zip(image.split(height, dim=1), place.split(patches), strict=True):
            # however it lies in memory, colour by colour from here on
            normalised = torch.empty(band.shape, device=device).copy_(band)
            lay(normalised.sub_(mean).div_(std), part)

    def lay(self, normalised: Float[Tensor, "3 height width"], place: Float[Tensor, "patches values"]) -> None:
        """Values in the order of their patches, on any device."""
        patch, merge = self.patch, self.merge
        rows, columns = normalised.shape[1] // (patch * merge), normalised.shape[2] // (patch * merge)
        cut = normalised.view(3, rows, merge, patch, columns, merge, patch).permute(1, 4, 2, 5, 0, 3, 6)
        place.view(rows, columns, merge, merge, 3, patch, patch).copy_(cut)

    def lay_rows(self, normalised: Float[Tensor, "3 height width"], place: Float[Tensor, "patches values"]) -> None:
        """The same on the CPU: numpy moves a row of a patch as one element; torch spends more on a row's start than on
        its 14 or 16 pixels.
        """
        patch, merge = self.patch, self.merge
        rows, columns = normalised.shape[1] // (patch * merge), normalised.shape[2] // (patch * merge)
        row = np.dtype((np.void, patch * normalised.itemsize))
        cut = normalised.numpy().view(row).reshape(3, rows, merge, patch, columns, merge).transpose(1, 4, 2, 5, 0, 3)
        place.numpy().view(row).reshape(rows, columns, merge, merge, 3, patch)[...] = cut


class FlatPatchEmbed(nn.Module):
    """A tower's own patch embedding, whose kernel is as large as its stride, as the one matrix product that it is.

    Reads the patches of one frame as those of a film of equal frames: in float32 the frames of the kernel are summed,
    which is half the product;
    in narrower types, in which that sum would be rounded once more, the patches are repeated. A film's patches, colour
    by colour and frame
    by frame, it reads as the tower does. The map stays where a checkpoint has it, as `proj`.

    Args:
        stock: the tower's embedding, a convolution `proj` over frames, rows, and columns.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.proj: nn.Conv3d = stock.proj

    def forward(self, patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches width"]:
        weight = self.proj.weight
        still = patches.shape[1] < weight[0].numel()
        if still and weight.dtype == torch.float32:
            return nn.functional.linear(patches, weight.sum(dim=2).flatten(1), self.proj.bias)
        values = patches.to(weight.dtype)
        if still:
            values = values.unflatten(1, (weight.shape[1], 1, -1)).expand(-1, -1, weight.shape[2], -1).flatten(1)
        return nn.functional.linear(values, weight.flatten(1), self.proj.bias)
