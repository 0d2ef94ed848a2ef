"""Boxes and points drawn as maps, so that a small segmentation model need not learn where a coordinate lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from virtue_pl.types import VisualPrompt, index_tensors
from virtue_pl.types.layout import group_by_owner

NO_LABEL = -1
"""Stands where a prompt has fewer points than another, and so no label."""


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
        if not prompts:
            nothing = torch.zeros(1, 4, self.map_size, self.map_size, device=device)
            return self.layers(nothing[:, :3])[:0], nothing[:0]
        maps = self.maps_of(prompts)
        return self.layers(maps[:, :3]), maps

    def maps(self, prompt: VisualPrompt) -> Float[Tensor, "4 size size"]:
        """Return the maps of a prompt's boxes, inside points, outside points and masks, each in [0, 1]."""
        return self.maps_of([prompt])[0]

    def maps_of(self, prompts: Sequence[VisualPrompt]) -> Float[Tensor, "prompts 4 size size"]:
        """Return the maps of all prompts together; a device starts as much for many as for one."""
        boxes = pad_items([prompt.boxes for prompt in prompts])
        points = pad_items([prompt.points for prompt in prompts])
        labels = pad_items([prompt.point_labels[:, None] for prompt in prompts], padding=NO_LABEL)[..., 0]
        inside, outside = (self.point_maps(points, labels == label) for label in (1, 0))
        masks = mask_coverage(prompts, (self.map_size, self.map_size))
        return torch.stack([self.box_coverage(boxes), inside, outside, masks], dim=1)

    def box_coverage(self, boxes: Float[Tensor, "prompts boxes 4"]) -> Float[Tensor, "prompts size size"]:
        """Return the share of each cell that a prompt's boxes (xyxy, normalised) cover; overlaps count up to 1."""
        edges = torch.arange(self.map_size, device=boxes.device)
        x1, y1, x2, y2 = (boxes * self.map_size)[..., None].unbind(dim=-2)
        across = (torch.minimum(edges + 1, x2) - torch.maximum(edges, x1)).clamp(0, 1)
        down = (torch.minimum(edges + 1, y2) - torch.maximum(edges, y1)).clamp(0, 1)
        return (down[..., :, None] * across[..., None, :]).sum(dim=1).clamp(max=1)

    def point_maps(
        self, points: Float[Tensor, "prompts points 2"], counted: Bool[Tensor, "prompts points"]
    ) -> Float[Tensor, "prompts size size"]:
        """Return the sum of each prompt's counted points' Gaussians, up to 1. points: (x, y), normalised."""
        centres = (torch.arange(self.map_size, device=points.device) + 0.5) / self.map_size
        across = torch.exp(-0.5 * ((centres - points[..., :1]) / self.sigma) ** 2) * counted[..., None]
        down = torch.exp(-0.5 * ((centres - points[..., 1:]) / self.sigma) ** 2)
        return (down[..., :, None] * across[..., None, :]).sum(dim=1).clamp(max=1)


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


def pad_items(items: Sequence[Shaped[Tensor, "items width"]], padding: int = 0) -> Shaped[Tensor, "prompts most width"]:
    """Return the items of all prompts, filled up with `padding` to as many as the longest has."""
    counts = [len(item) for item in items]
    most, together = max(counts), torch.cat(list(items))
    if counts == [most] * len(counts):
        return together.view(len(counts), most, together.shape[1])
    positions = [row * most + number for row, count in enumerate(counts) for number in range(count)]
    (index,) = index_tensors([positions], together.device)
    padded = together.new_full((len(counts) * most, together.shape[1]), padding).index_copy(0, index, together)
    return padded.view(len(counts), most, -1)


def mask_coverage(
    prompts: Sequence[VisualPrompt], size: tuple[int, int]
) -> Float[Tensor, "prompts new_height new_width"]:
    """Return the share of each cell, of `size` = (height, width) cells, that any of a prompt's masks covers.

    Prompts with as many masks of one size go together.
    """
    groups = list(group_by_owner([prompt.masks.shape for prompt in prompts]).values())
    covered = [cover_together([prompts[number].masks for number in group], size) for group in groups]
    if len(groups) == 1:
        return covered[0]
    order = [number for group in groups for number in group]
    (index,) = index_tensors([sorted(range(len(order)), key=order.__getitem__)], covered[0].device)
    return torch.cat(covered)[index]


def cover_together(
    masks: Sequence[Bool[Tensor, "masks height width"]], size: tuple[int, int]
) -> Float[Tensor, "prompts new_height new_width"]:
    """Return the share of each cell that any of a prompt's masks covers, for masks of equal shape."""
    unions = torch.stack(list(masks)).any(dim=1)[:, None].float()
    return interpolate(unions, size=size, mode="bilinear", antialias=True)[:, 0]
