"""Boxes and points drawn as maps, so that a small segmentation model need not learn where a coordinate lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from virtue_pl.types import VisualPrompt


class DenseHints(nn.Module):
    """What a prompt's boxes and points cover, embedded like segment-anything's mask prompt and added to the dense
    embedding.

    segment-anything learns from a billion masks to find the place that a point's Fourier code names. A model of this
    size, trained for
    minutes, is told: one map is the share of each cell that boxes cover, two hold a bell around each inside and outside
    point.

    Args:
        embed_dim: d.
        map_size: side of the maps, four times the feature map's.
        channels: width inside the convolutions.
        bell: standard deviation of a point's bell, as a share of the image's side.
    """

    def __init__(self, embed_dim: int, map_size: int, channels: int = 16, bell: float = 0.03) -> None:
        super().__init__()
        self.map_size = map_size
        self.bell = bell
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels, kernel_size=2, stride=2),
            LayerNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, embed_dim, kernel_size=1),
        )

    def forward(
        self, prompts: Sequence[VisualPrompt], device: torch.device
    ) -> tuple[Float[Tensor, "prompts d height width"], Float[Tensor, "prompts 4 map_height map_width"]]:
        """What to add to the dense embedding, and the maps: boxes, inside points, outside points, masks."""
        maps = torch.stack(
            [self.maps(prompt) for prompt in prompts] or [torch.zeros(4, self.map_size, self.map_size, device=device)]
        )
        return self.layers(maps[:, :3])[: len(prompts)], maps[: len(prompts)]

    def maps(self, prompt: VisualPrompt) -> Float[Tensor, "4 size size"]:
        """Cells covered by boxes; bells around inside points; bells around outside points; cells covered by masks."""
        inside, outside = (self.bells(prompt.points[prompt.point_labels == label]) for label in (1, 0))
        return torch.stack(
            [self.covered(prompt.boxes), inside, outside, covered_area(prompt.masks, (self.map_size, self.map_size))[0]]
        )

    def covered(self, boxes: Float[Tensor, "boxes 4"]) -> Float[Tensor, "size size"]:
        edges = torch.arange(self.map_size, device=boxes.device)
        x1, y1, x2, y2 = (boxes * self.map_size).unbind(dim=1)
        across = (torch.minimum(edges + 1, x2[:, None]) - torch.maximum(edges, x1[:, None])).clamp(0, 1)
        down = (torch.minimum(edges + 1, y2[:, None]) - torch.maximum(edges, y1[:, None])).clamp(0, 1)
        return (down[:, :, None] * across[:, None, :]).sum(dim=0).clamp(max=1)

    def bells(self, points: Float[Tensor, "points 2"]) -> Float[Tensor, "size size"]:
        centres = (torch.arange(self.map_size, device=points.device) + 0.5) / self.map_size
        across = torch.exp(-0.5 * ((centres - points[:, :1]) / self.bell) ** 2)
        down = torch.exp(-0.5 * ((centres - points[:, 1:]) / self.bell) ** 2)
        return (down[:, :, None] * across[:, None, :]).sum(dim=0).clamp(max=1)


class SameObject(nn.Module):
    """What the image shows where a prompt points, and how alike every other place is.

    A click says which object is meant only together with the image: alike places most likely belong to it. The features
    are
    the frozen trunk's own, which know objects from the start.

    Args:
        channels: of the image's features.
        embed_dim: d.
        width: in which places are compared.
    """

    def __init__(self, channels: int, embed_dim: int, width: int = 64) -> None:
        super().__init__()
        self.compare = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.describe = nn.Linear(embed_dim, embed_dim)
        self.alike = nn.Parameter(torch.randn(embed_dim) * 0.5)

    def forward(
        self,
        image: Float[Tensor, "images channels height width"],
        neck: Float[Tensor, "images d height width"],
        focus: Float[Tensor, "prompts height width"],
        images: Int[Tensor, " prompts"],
    ) -> tuple[Float[Tensor, "prompts d"], Float[Tensor, "prompts d height width"]]:
        """For the mask token: the map's mean where the prompt points. For the map: its cosine to that, along one
        direction.
        """
        weights = focus / focus.sum(dim=(1, 2), keepdim=True).clamp(min=1e-4)
        shown = torch.einsum("pdhw,phw->pd", neck[images], weights)
        places = normalize(self.compare(image), dim=1)[images]
        meant = normalize(torch.einsum("pchw,phw->pc", places, weights), dim=1)
        likeness = torch.einsum("pchw,pc->phw", places, meant)
        return self.describe(shown), likeness[:, None] * self.alike[:, None, None]


def covered_area(
    masks: Bool[Tensor, "masks height width"], size: tuple[int, int]
) -> Float[Tensor, "1 new_height new_width"]:
    """The share of each cell that any of the masks covers."""
    union = masks.any(dim=0)[None, None].float()
    return interpolate(union, size=size, mode="bilinear", antialias=True)[0]
