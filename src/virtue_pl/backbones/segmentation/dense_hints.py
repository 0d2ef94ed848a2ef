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
    """Maps of a prompt's boxes and points, embedded as segment-anything's mask prompt is, and added to that embedding.

    segment-anything learns from a billion masks to find the position that a point's Fourier code names. A model of this
    size, trained for minutes, is given it instead: one map holds the share of each cell that boxes cover, two hold a
    Gaussian around each inside and outside point.

    Args:
        embed_dim: d.
        map_size: cells along a map's side, four times the feature map's.
        channels: width inside the convolutions.
        sigma: standard deviation of a point's Gaussian, as a share of the image's side.

    Example:
        >>> prompt = VisualPrompt.from_pixels(boxes=[[0, 0, 50, 50]], size=(100, 100))
        >>> embedded, maps = DenseHints(embed_dim=8, map_size=4)([prompt], torch.device("cpu"))
        >>> tuple(embedded.shape), maps[0, 0].tolist()[0]
        ((1, 8, 1, 1), [1.0, 1.0, 0.0, 0.0])
    """

    def __init__(self, embed_dim: int, map_size: int, channels: int = 16, sigma: float = 0.03) -> None:
        super().__init__()
        self.map_size = map_size
        self.sigma = sigma
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
        """Return what to add to the dense embedding, and the maps: boxes, inside points, outside points, masks."""
        maps = torch.stack(
            [self.maps(prompt) for prompt in prompts] or [torch.zeros(4, self.map_size, self.map_size, device=device)]
        )
        return self.layers(maps[:, :3])[: len(prompts)], maps[: len(prompts)]

    def maps(self, prompt: VisualPrompt) -> Float[Tensor, "4 size size"]:
        """Return the maps of a prompt's boxes, inside points, outside points and masks, each in [0, 1]."""
        inside, outside = (self.point_map(prompt.points[prompt.point_labels == label]) for label in (1, 0))
        masks = mask_coverage(prompt.masks, (self.map_size, self.map_size))[0]
        return torch.stack([self.box_coverage(prompt.boxes), inside, outside, masks])

    def box_coverage(self, boxes: Float[Tensor, "boxes 4"]) -> Float[Tensor, "size size"]:
        """Return the share of each cell that the boxes (xyxy, normalised) cover; overlaps are counted up to 1."""
        edges = torch.arange(self.map_size, device=boxes.device)
        x1, y1, x2, y2 = (boxes * self.map_size).unbind(dim=1)
        across = (torch.minimum(edges + 1, x2[:, None]) - torch.maximum(edges, x1[:, None])).clamp(0, 1)
        down = (torch.minimum(edges + 1, y2[:, None]) - torch.maximum(edges, y1[:, None])).clamp(0, 1)
        return (down[:, :, None] * across[:, None, :]).sum(dim=0).clamp(max=1)

    def point_map(self, points: Float[Tensor, "points 2"]) -> Float[Tensor, "size size"]:
        """Return the sum of the points' Gaussians, up to 1. points: (x, y), normalised."""
        centres = (torch.arange(self.map_size, device=points.device) + 0.5) / self.map_size
        across = torch.exp(-0.5 * ((centres - points[:, :1]) / self.sigma) ** 2)
        down = torch.exp(-0.5 * ((centres - points[:, 1:]) / self.sigma) ** 2)
        return (down[:, :, None] * across[:, None, :]).sum(dim=0).clamp(max=1)


class ObjectSimilarity(nn.Module):
    """The image's features where a prompt points, and the similarity of every other cell to them.

    A click says which object is meant only together with the image: similar cells most likely belong to it. The
    features are the frozen trunk's own, which discriminate objects from the start.

    Args:
        channels: channels of the image's features.
        embed_dim: d.
        width: channels in which cells are compared.

    Example:
        >>> image, neck = torch.randn(1, 6, 4, 4), torch.randn(1, 8, 4, 4)
        >>> focus, images = torch.ones(2, 4, 4), torch.tensor([0, 0])   # two prompts on one image
        >>> [tuple(output.shape) for output in ObjectSimilarity(channels=6, embed_dim=8)(image, neck, focus, images)]
        [(2, 8), (2, 8, 4, 4)]
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
        """Return what to add to the mask token and to the map of each prompt.

        To the mask token: the mean of `neck` where the prompt points (`focus`). To the map: each cell's cosine to the
        mean of `image` there, along one learned direction. images: the image of each prompt.
        """
        weights = focus / focus.sum(dim=(1, 2), keepdim=True).clamp(min=1e-4)
        pooled = torch.einsum("pdhw,phw->pd", neck[images], weights)
        cells = normalize(self.compare(image), dim=1)[images]
        prompted = normalize(torch.einsum("pchw,phw->pc", cells, weights), dim=1)
        similarity = torch.einsum("pchw,pc->phw", cells, prompted)
        return self.describe(pooled), similarity[:, None] * self.alike[:, None, None]


def mask_coverage(
    masks: Bool[Tensor, "masks height width"], size: tuple[int, int]
) -> Float[Tensor, "1 new_height new_width"]:
    """Return the share of each cell, of `size` = (height, width) cells, that any of the masks covers."""
    union = masks.any(dim=0)[None, None].float()
    return interpolate(union, size=size, mode="bilinear", antialias=True)[0]
