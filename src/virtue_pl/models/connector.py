"""Connectors: from the segmentation model's features to tokens of the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from virtue_pl.backbones.class_names import ClassNames
from virtue_pl.types import FeatureWidths, SegmentFeatures, SegmentTokens, VirtueError

CLASS_NAME_WEIGHT = 2.0
"""Length of a class name's embedding relative to the learned summary's."""
OBJECT_DROPOUT = 0.3


class Connector(nn.Module, ABC):
    """Abstract map of `SegmentFeatures` to segment tokens; constructors take (widths, hidden_size, ...).

    Example:
        >>> class MeanConnector(Connector):
        ...     reads = frozenset({"embedding"})
        ...     def __init__(self, widths: FeatureWidths, hidden_size: int) -> None:
        ...         super().__init__()
        ...         self.project = nn.Linear(widths.embedding, hidden_size)
        ...     def forward(self, features: SegmentFeatures) -> SegmentTokens:
        ...         return SegmentTokens(self.project(features.embedding.mean(dim=(2, 3)))[:, None])
    """

    reads: frozenset[str] = frozenset({"embedding", "image", "mask_logits", "focus"})
    """The fields of `SegmentFeatures` that `forward` uses; a gradient cache stores no others."""

    requires: frozenset[str] = frozenset()
    """The fields among them that a segmentation model may leave out, and that `forward` cannot do without."""

    @abstractmethod
    def forward(self, features: SegmentFeatures) -> SegmentTokens:
        """Return the tokens of each prompt, which stand in front of its row's vision and text tokens."""


class ConvolutionConnector(Connector):
    """The paper's connector: a strided convolution over the prompt-conditioned embedding, then a two-layer MLP.

    Source: VIRTUE (arXiv 2510.00523), section 3; 256 tokens from a 64x64 map with stride 4.

    Args:
        widths: channels of the segmentation backbone's features.
        hidden_size: width of the language model.
        stride: kernel and stride of the convolution; a map of 16x16 cells and stride 4 give 16 tokens.

    Example:
        >>> connector = ConvolutionConnector(FeatureWidths(embedding=8, image=12), hidden_size=10, stride=4)
        >>> embedding, image = torch.randn(2, 8, 16, 16), torch.randn(2, 12, 16, 16)
        >>> connector(SegmentFeatures(embedding, image, None, torch.zeros(8, 16, 16))).tokens.shape
        torch.Size([2, 16, 10])
    """

    reads = frozenset({"embedding"})

    def __init__(self, widths: FeatureWidths, hidden_size: int, stride: int = 4) -> None:
        super().__init__()
        width = widths.embedding
        self.reduce = nn.Conv2d(width, width, kernel_size=stride, stride=stride)
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, hidden_size))

    def forward(self, features: SegmentFeatures) -> SegmentTokens:
        return SegmentTokens(self.project(self.reduce(features.embedding).flatten(2).transpose(1, 2)))


class MaskConnector(Connector):
    """Tokens pooled by the predicted mask: the object, its position, its context by direction, and the gated map.

    A plain convolution over the whole map buries the object. Here one token pools the unprompted features inside the
    predicted mask; one holds the mask's centre and extent; four pool what stands out to its left, to its right, above
    and below it; `grid_size` x `grid_size` tokens hold the paper's prompt-conditioned embedding, gated by the mask.

    Args:
        widths: channels of the segmentation backbone's features.
        hidden_size: width of the language model.
        grid_size: the gated map is pooled to `grid_size` x `grid_size` tokens.
        directions: add the four tokens of the context.
        summary: also add a summary of the pooled features to the language model's embedding (`ShortcutHead`).
        class_names: the classifier whose names join the summary, or None for the learned summary alone.
        summary_limit: upper bound of the summary's length, beside the language model's state of length 1.

    Example:
        >>> connector = MaskConnector(FeatureWidths(embedding=8, image=12), hidden_size=10, grid_size=2)
        >>> embedding, image = torch.randn(3, 8, 16, 16), torch.randn(3, 12, 16, 16)
        >>> connector(SegmentFeatures(embedding, image, torch.randn(3, 64, 64), torch.zeros(8, 16, 16))).tokens.shape
        torch.Size([3, 10, 10])
    """

    requires = frozenset({"mask_logits"})

    def __init__(
        self,
        widths: FeatureWidths,
        hidden_size: int,
        grid_size: int = 2,
        directions: bool = True,
        summary: bool = False,
        class_names: ClassNames | None = None,
        summary_limit: float = 3.0,
    ) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.object = projection(widths.image, hidden_size)
        self.place = nn.Sequential(nn.Linear(6, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.gated = projection(widths.embedding, hidden_size)
        self.surroundings = DirectionalContext(widths.image, hidden_size) if directions else None
        self.around = nn.Linear(hidden_size, hidden_size) if directions else None
        self.summary = (
            ShortcutHead(widths.image, hidden_size, 4 * directions, class_names, summary_limit) if summary else None
        )
        self.roles = nn.Parameter(torch.randn(2 + 4 * directions + grid_size**2, hidden_size) * 0.02)

    def forward(self, features: SegmentFeatures) -> SegmentTokens:
        inside = self.object_weights(features)
        statistics = mask_statistics(inside)
        object_features = pool(features.image, inside)
        context = object_features.new_zeros(len(object_features), 0, self.roles.shape[1])
        tokens = [self.object(object_features)[:, None], self.place(statistics)[:, None]]
        if self.surroundings is not None and self.around is not None:
            context = self.surroundings(features.image, inside, statistics)
            tokens.append(self.around(context))
        gate = interpolate(inside[:, None], size=features.embedding.shape[-2:], mode="area")
        gated = adaptive_avg_pool2d(features.embedding * gate, self.grid_size).flatten(2).transpose(1, 2)
        tokens.append(self.gated(gated))
        summary = None
        if self.summary is not None:
            summary = self.summary(object_features, pool(features.image, 1 - inside), context)
        return SegmentTokens(torch.cat(tokens, dim=1) + self.roles, summary)

    def object_weights(self, features: SegmentFeatures) -> Float[Tensor, "prompts height width"]:
        """Return the share of each cell of `features.image` that belongs to the object, in [0, 1]: the predicted mask.

        Raises VirtueError where the backbone predicts none.
        """
        if features.mask_logits is None:
            raise VirtueError(
                "MaskConnector reads the predicted mask, but the segmentation backbone predicts none: set its"
                " predict_masks to true"
            )
        return mask_weights(features.mask_logits, features.image.shape[-2:])


class DirectionalContext(nn.Module):
    """Attention pooling of what stands out to the left of a mask, to its right, above and below it.

    Every cell is described before cells are pooled, since two objects may lie in one direction; which cells stand out
    is learned.

    Args:
        width: channels of the features.
        hidden_size: width of a cell's description.

    Example:
        >>> inside = torch.zeros(1, 8, 8)
        >>> inside[:, 2:4, 2:4] = 1
        >>> DirectionalContext(12, 10)(torch.randn(1, 12, 8, 8), inside, mask_statistics(inside)).shape
        torch.Size([1, 4, 10])
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        from segment_anything.modeling.common import LayerNorm2d

        super().__init__()
        self.normalise = LayerNorm2d(width)
        self.describe = nn.Sequential(nn.Conv2d(width, hidden_size, 1), nn.GELU())
        self.saliency = nn.Sequential(nn.Conv2d(width, 64, 1), nn.GELU(), nn.Conv2d(64, 1, 1, bias=False))

    def forward(
        self,
        image: Float[Tensor, "prompts channels height width"],
        inside: Float[Tensor, "prompts height width"],
        statistics: Float[Tensor, "prompts 6"],
    ) -> Float[Tensor, "prompts 4 hidden"]:
        """Return the pooled descriptions to the left, to the right, above and below.

        The attention spans the cells outside the mask in each direction's cone from the mask's centre. inside: the
        share of each cell in the mask; statistics: of `mask_statistics`.
        """
        image = self.normalise(image)
        outside = direction_cones(statistics[:, :2], image.shape[-2:]) * (1 - inside)[:, None] + 1e-6
        attention = (self.saliency(image).float() + outside.log()).flatten(2).softmax(dim=-1)
        return attention @ self.describe(image).flatten(2).transpose(1, 2).float()


class ShortcutHead(nn.Module):
    """A shortcut from the image to the embedding: maps of what is inside the mask, outside, and in each direction.

    A caption says what the object is, what it stands beside, and where; the maps' sum says the same, and each map
    learns one of these. The maps are zero at first. In a training of minutes they get there much sooner than through
    the language model's layers. The object's map is linear, with dropout on its features: a deeper one learns the
    objects of training as well and unseen ones worse.

    Args:
        width: channels of the features inside and outside.
        hidden_size: width of the embedding, and of a direction's description.
        directions: number of directions.
        class_names: see `MaskConnector`; it reads the last of the features, the trunk's coarsest. Training leaves it
            out: with it, the object's map learns to correct the names of the objects in training, and says less of
            others.
        limit: upper bound of the sum's length.

    Example:
        >>> head = ShortcutHead(width=12, hidden_size=10, directions=4)
        >>> head(torch.randn(2, 12), torch.randn(2, 12), torch.randn(2, 4, 10)).abs().max().item()
        0.0
    """

    def __init__(
        self, width: int, hidden_size: int, directions: int, class_names: ClassNames | None = None, limit: float = 3.0
    ) -> None:
        super().__init__()
        if not limit > 0:
            raise VirtueError(f"connector.summary_limit is {limit}, expected more than 0")
        if class_names is not None and (class_names.width > width or class_names.hidden_size != hidden_size):
            raise VirtueError(
                f"class_names: ClassNames reads {class_names.width} features and gives {class_names.hidden_size},"
                f" expected at most {width} and {hidden_size}: name the segmentation backbone's trunk and the fusion"
                " head's language model"
            )
        self.inside = zero_last_layer(
            nn.Sequential(nn.LayerNorm(width), nn.Dropout(OBJECT_DROPOUT), nn.Linear(width, hidden_size))
        )
        self.outside = zero_last_layer(projection(width, hidden_size))
        self.directions = nn.ModuleList(
            zero_last_layer(nn.Sequential(nn.Linear(hidden_size, hidden_size, bias=False))) for _ in range(directions)
        )
        self.limit = limit
        self.names = class_names

    def forward(
        self,
        inside: Float[Tensor, "prompts channels"],
        outside: Float[Tensor, "prompts channels"],
        context: Float[Tensor, "prompts directions hidden"],
    ) -> Float[Tensor, "prompts hidden"]:
        """Return the summary of each prompt, shorter than `limit`."""
        directed = [layer(part) for layer, part in zip(self.directions, context.unbind(dim=1), strict=True)]
        summary = torch.stack([self.inside(inside), self.outside(outside), *directed]).sum(dim=0).float()
        if self.names is not None and not self.training:
            named = self.names(inside[:, -self.names.width :])
            summary = summary + CLASS_NAME_WEIGHT * summary.norm(dim=-1, keepdim=True) * named
        return shorten(summary, self.limit)


def projection(width: int, hidden_size: int) -> nn.Sequential:
    """Return a normalised two-layer MLP from `width` to `hidden_size`."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )


def shorten(vectors: Float[Tensor, "rows hidden"], limit: float) -> Float[Tensor, "rows hidden"]:
    """Return the vectors with lengths below `limit`; short ones hardly change."""
    return vectors / (1 + vectors.square().sum(dim=-1, keepdim=True) / limit**2).sqrt()


def zero_last_layer(layers: nn.Sequential) -> nn.Sequential:
    """Return the layers with the last one's parameters set to zero, in place."""
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return layers


def mask_weights(
    logits: Float[Tensor, "prompts rows columns"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "prompts height width"]:
    """Return the share of each cell, of `size` = (height, width) cells, that is inside the mask, in [0, 1]."""
    return interpolate(logits.float().sigmoid()[:, None], size=tuple(size), mode="area")[:, 0]


def pool(
    image: Float[Tensor, "prompts channels height width"], weights: Float[Tensor, "prompts height width"]
) -> Float[Tensor, "prompts channels"]:
    """Return the mean of `image` weighted by `weights`."""
    return torch.einsum("pchw,phw->pc", image, weights) / weights.sum(dim=(1, 2)).clamp(min=1e-4)[:, None]


def cell_centres(
    size: tuple[int, int] | torch.Size, like: Tensor
) -> tuple[Float[Tensor, "height 1"], Float[Tensor, "1 width"]]:
    """Return y and x of the cells' centres, normalised to [0, 1], on the device and in the type of `like`."""
    height, width = size
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return y[:, None], x[None]


def mask_statistics(inside: Float[Tensor, "prompts height width"]) -> Float[Tensor, "prompts 6"]:
    """Return each mask's centre x, centre y, spread in x, spread in y, share of the image, and the share's square root.

    All are normalised to the image. inside: the share of each cell in the mask.
    """
    y, x = cell_centres(inside.shape[-2:], inside)
    total = inside.sum(dim=(1, 2)).clamp(min=1e-4)
    centre_x = (inside * x).sum(dim=(1, 2)) / total
    centre_y = (inside * y).sum(dim=(1, 2)) / total
    spread_x = ((inside * (x - centre_x[:, None, None]) ** 2).sum(dim=(1, 2)) / total + 1e-8).sqrt()
    spread_y = ((inside * (y - centre_y[:, None, None]) ** 2).sum(dim=(1, 2)) / total + 1e-8).sqrt()
    share = inside.mean(dim=(1, 2))
    return torch.stack([centre_x, centre_y, spread_x, spread_y, share, (share + 1e-8).sqrt()], dim=1)


def direction_cones(
    centres: Float[Tensor, "prompts 2"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "prompts 4 height width"]:
    """Return 1 for cells to the left, right, above or below the centre (x, y), else 0; the longer axis decides."""
    y, x = cell_centres(size, centres)
    dx = x - centres[:, 0, None, None]
    dy = y - centres[:, 1, None, None]
    horizontal = dx.abs() > dy.abs()
    return torch.stack(
        [horizontal & (dx < 0), horizontal & (dx > 0), ~horizontal & (dy < 0), ~horizontal & (dy > 0)], dim=1
    ).to(centres.dtype)
