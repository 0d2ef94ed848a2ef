"""Resized pictures to the patches that a Qwen-VL's tower reads: the pixels of transformers' picture processor without its detours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn


class QwenPatches:
    """Normalises and cuts in patches. Equal to the model's own picture processor without its resize, bit by bit.

    A picture is normalised once, and its patches are written to their place once for each frame: a still is a film of equal frames.

    Args:
        stock: the model's picture processor, whose sizes, mean, standard deviation and scale are taken over.
    """

    def __init__(self, stock: Any) -> None:
        levels = 1.0 / stock.rescale_factor
        self.mean = (torch.tensor(stock.image_mean) * levels)[:, None, None]
        self.std = (torch.tensor(stock.image_std) * levels)[:, None, None]
        self.patch: int = stock.patch_size
        self.merge: int = stock.merge_size
        self.frames: int = stock.temporal_patch_size

    def __call__(self, pictures: Sequence[UInt8[Tensor, "3 height width"]]) -> tuple[Float[Tensor, "patches values"], Int[Tensor, "pictures 3"]]:
        """All pictures' patches, one picture behind the other, and each one's number of them: in time, down, and across.

        Sides are multiples of patch x merge. Patches that become one token are neighbours; a patch's values are colour, frame, row, column.
        """
        grids = [(1, picture.shape[1] // self.patch, picture.shape[2] // self.patch) for picture in pictures]
        counts = [down * across for _, down, across in grids]
        values = torch.empty(sum(counts), 3 * self.frames * self.patch**2, device=pictures[0].device)
        for picture, place in zip(pictures, values.split(counts), strict=True):
            self.write(picture, place)
        return values, torch.tensor(grids, device=values.device)

    def write(self, picture: UInt8[Tensor, "3 height width"], place: Float[Tensor, "patches values"]) -> None:
        """One picture's patches, to where they belong."""
        normalised = torch.empty(picture.shape, device=picture.device).copy_(picture)  # however it lies in memory, colour by colour from here on
        normalised.sub_(self.mean.to(picture.device)).div_(self.std.to(picture.device))
        lay = self.lay_rows if picture.device.type == "cpu" else self.lay
        lay(normalised, place)

    def lay(self, normalised: Float[Tensor, "3 height width"], place: Float[Tensor, "patches values"]) -> None:
        """A picture's values in the order of its patches, on any device."""
        patch, merge = self.patch, self.merge
        rows, columns = normalised.shape[1] // (patch * merge), normalised.shape[2] // (patch * merge)
        cut = normalised.view(3, rows, merge, patch, columns, merge, patch).permute(1, 4, 2, 5, 0, 3, 6)
        place.view(rows, columns, merge, merge, 3, self.frames, patch, patch).copy_(cut.unsqueeze(5))

    def lay_rows(self, normalised: Float[Tensor, "3 height width"], place: Float[Tensor, "patches values"]) -> None:
        """The same on the CPU: numpy moves a row of a patch as one element; torch spends more on a row's start than on its 14 or 16 pixels."""
        patch, merge = self.patch, self.merge
        rows, columns = normalised.shape[1] // (patch * merge), normalised.shape[2] // (patch * merge)
        row = np.dtype((np.void, patch * normalised.itemsize))
        cut = normalised.numpy().view(row).reshape(3, rows, merge, patch, columns, merge).transpose(1, 4, 2, 5, 0, 3)
        place.numpy().view(row).reshape(rows, columns, merge, merge, 3, self.frames, patch)[...] = cut[:, :, :, :, :, None]


class FlatPatchEmbed(nn.Module):
    """A tower's own patch embedding, whose kernel is as large as its stride, as the one matrix product that it is.

    Its map stays where a checkpoint has it, as `proj`.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.proj: nn.Conv3d = stock.proj

    def forward(self, patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches width"]:
        weight = self.proj.weight
        return nn.functional.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)
