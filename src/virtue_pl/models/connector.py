"""From the segmentation model's features to tokens of the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from virtue_pl.backbones.class_names import ClassNames
from virtue_pl.types import FeatureWidths, SegmentFeatures, SegmentTokens, VirtueError

NAMES_WEIGHT = 2.0
"""Of a class name beside what training taught, as part of the latter's length."""
OBJECT_DROPOUT = 0.3


class Connector(nn.Module, ABC):
    """`SegmentFeatures` to segment tokens. Constructors take (widths, hidden_size, ...): the neighbours' sizes come
    first.
    """

    reads: frozenset[str] = frozenset({"embedding", "image", "mask_logits", "focus"})
    """The fields of `SegmentFeatures` that it looks at; a gradient cache keeps no others."""

    @abstractmethod
    def forward(self, features: SegmentFeatures) -> SegmentTokens:
        """The tokens that stand in front of the row's vision and text tokens."""


class ConvolutionConnector(Connector):
    """The paper's connector: a strided convolution over the prompt-conditioned embedding, then a two-layer MLP.

    Source: VIRTUE (arXiv 2510.00523), section 3; 256 tokens from a 64x64 map with stride 4.

    Args:
        widths, hidden_size: of the neighbours.
        stride: kernel and stride of the convolution; a map of 16x16 places and stride 4 give 16 tokens.
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
    """Tokens that know the predicted mask: the object, what lies around it in each direction, and the gated map.

    A plain convolution over the whole map buries the object. Here one token pools the unprompted features inside the
    predicted mask; four look to its left, its right, above and below for what stands out there; `side` x `side` tokens
    carry the
    paper's prompt-conditioned embedding, gated by the mask; one carries where the mask is (centre and extent).

    Args:
        widths, hidden_size: of the neighbours.
        side: the gated map is pooled to `side` x `side` tokens.
        directions: whether to add the four tokens of the surroundings.
        summary: whether what the tokens are made of also joins the embedding behind the language model
            (`ShortcutHead`).
        names: what the trunk's classifier would call the object joins the summary; None for what training teaches
            alone.
        summary_limit: the summary's length stays below it, beside the language model's state of length 1, so that both
            are heard.
    """

    def __init__(
        self,
        widths: FeatureWidths,
        hidden_size: int,
        side: int = 2,
        directions: bool = True,
        summary: bool = False,
        names: ClassNames | None = None,
        summary_limit: float = 3.0,
    ) -> None:
        super().__init__()
        self.side = side
        self.object = projection(widths.image, hidden_size)
        self.place = nn.Sequential(nn.Linear(6, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.gated = projection(widths.embedding, hidden_size)
        self.surroundings = DirectionalContext(widths.image, hidden_size) if directions else None
        self.around = nn.Linear(hidden_size, hidden_size) if directions else None
        self.summary = (
            ShortcutHead(widths.image, hidden_size, 4 * directions, names, summary_limit) if summary else None
        )
        self.roles = nn.Parameter(torch.randn(2 + 4 * directions + side**2, hidden_size) * 0.02)

    def forward(self, features: SegmentFeatures) -> SegmentTokens:
        inside = self.inside(features)
        statistics = mask_statistics(inside)
        shown = pool(features.image, inside)
        around = shown.new_zeros(len(shown), 0, self.roles.shape[1])
        tokens = [self.object(shown)[:, None], self.place(statistics)[:, None]]
        if self.surroundings is not None and self.around is not None:
            around = self.surroundings(features.image, inside, statistics)
            tokens.append(self.around(around))
        gate = interpolate(inside[:, None], size=features.embedding.shape[-2:], mode="area")
        gated = adaptive_avg_pool2d(features.embedding * gate, self.side).flatten(2).transpose(1, 2)
        tokens.append(self.gated(gated))
        summary = None if self.summary is None else self.summary(shown, pool(features.image, 1 - inside), around)
        return SegmentTokens(torch.cat(tokens, dim=1) + self.roles, summary)

    def inside(self, features: SegmentFeatures) -> Float[Tensor, "prompts height width"]:
        """How much of each place of `features.image` belongs to the object, in [0, 1]: here the predicted mask
        says it.
        """
        if features.mask_logits is None:
            raise VirtueError(
                "MaskConnector reads the predicted mask, but the segmentation backbone predicts none: set its"
                " predict_masks to true"
            )
        return mask_weights(features.mask_logits, features.image.shape[-2:])


class DirectionalContext(nn.Module):
    """What stands out to the left of a mask, to its right, above and below it.

    Every place is described before places are pooled, since two objects may lie in one direction; which places stand
    out is learned.

    Args:
        width: of the features.
        hidden_size: of what describes a place.
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
        """Attention over the places in the cones to the left, to the right, above and below the mask's centre, outside
        the mask.
        """
        image = self.normalise(image)
        outside = direction_cones(statistics[:, :2], image.shape[-2:]) * (1 - inside)[:, None] + 1e-6
        attention = (self.saliency(image).float() + outside.log()).flatten(2).softmax(dim=-1)
        return attention @ self.describe(image).flatten(2).transpose(1, 2).float()


class ShortcutHead(nn.Module):
    """The short way from the image to the embedding: what is inside the mask, outside it, and in each direction, each
    by a map of its own.

    A caption says what the object is, what it stands beside, and where; the sum says the same, and each map learns one
    of these. The maps
    are zero at first. In a training of minutes they get there much sooner than through the language model's layers. The
    object's map is
    linear, of features that are dropped at random: a deeper one learns the objects of training as well and those it has
    not seen worse.

    Args:
        width: of the features inside and outside.
        hidden_size: of the embedding, and of what describes a direction.
        directions: how many there are.
        names: see `MaskConnector`; it reads the last of the features, the trunk's coarsest. Training leaves it out:
            with it, the
            object's map learns to correct the names of the objects it is shown, and says less of others.
        limit: of the sum's length.
    """

    def __init__(
        self, width: int, hidden_size: int, directions: int, names: ClassNames | None = None, limit: float = 3.0
    ) -> None:
        super().__init__()
        if names is not None and (names.width > width or names.hidden_size != hidden_size):
            raise VirtueError(
                f"names: ClassNames reads {names.width} features and gives {names.hidden_size}, expected at most"
                f" {width} and {hidden_size}: name the segmentation backbone's trunk and the fusion head's language"
                " model"
            )
        self.inside = zero_at_first(
            nn.Sequential(nn.LayerNorm(width), nn.Dropout(OBJECT_DROPOUT), nn.Linear(width, hidden_size))
        )
        self.outside = zero_at_first(projection(width, hidden_size))
        self.directions = nn.ModuleList(
            zero_at_first(nn.Sequential(nn.Linear(hidden_size, hidden_size, bias=False))) for _ in range(directions)
        )
        self.limit = limit
        self.names = names

    def forward(
        self,
        inside: Float[Tensor, "prompts channels"],
        outside: Float[Tensor, "prompts channels"],
        around: Float[Tensor, "prompts directions hidden"],
    ) -> Float[Tensor, "prompts hidden"]:
        directed = [into(seen) for into, seen in zip(self.directions, around.unbind(dim=1), strict=True)]
        summary = torch.stack([self.inside(inside), self.outside(outside), *directed]).sum(dim=0).float()
        if self.names is not None and not self.training:
            named = self.names(inside[:, -self.names.width :])
            summary = summary + NAMES_WEIGHT * summary.norm(dim=-1, keepdim=True) * named
        return shorten(summary, self.limit)


def projection(width: int, hidden_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )


def shorten(vectors: Float[Tensor, "rows hidden"], limit: float) -> Float[Tensor, "rows hidden"]:
    """The vectors with lengths below `limit`; short ones hardly change."""
    return vectors / (1 + vectors.square().sum(dim=-1, keepdim=True) / limit**2).sqrt()


def zero_at_first(layers: nn.Sequential) -> nn.Sequential:
    """The layers with their last one's weights at zero."""
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return layers


def mask_weights(
    logits: Float[Tensor, "prompts rows columns"], size: tuple[int, int] | torch.Size
) -> Float[Tensor, "prompts height width"]:
    """How much of each place is inside the mask, in [0, 1]."""
    return interpolate(logits.float().sigmoid()[:, None], size=tuple(size), mode="area")[:, 0]


def pool(
    image: Float[Tensor, "prompts channels height width"], weights: Float[Tensor, "prompts height width"]
) -> Float[Tensor, "prompts channels"]:
    """The mean of `image` weighted by `weights`."""
    return torch.einsum("pchw,phw->pc", image, weights) / weights.sum(dim=(1, 2)).clamp(min=1e-4)[:, None]


def places(
    size: tuple[int, int] | torch.Size, like: Tensor
) -> tuple[Float[Tensor, "height 1"], Float[Tensor, "1 width"]]:
    """y and x of the places' centres, normalised."""
    height, width = size
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return y[:, None], x[None]


def mask_statistics(inside: Float[Tensor, "prompts height width"]) -> Float[Tensor, "prompts 6"]:
    """Of the mask: centre x, centre y, spread in x, spread in y, share of the image, and its square root."""
    y, x = places(inside.shape[-2:], inside)
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
    """1 where a place lies to the left, to the right, above or below the centre (the longer axis decides), else 0."""
    y, x = places(size, centres)
    dx = x - centres[:, 0, None, None]
    dy = y - centres[:, 1, None, None]
    horizontal = dx.abs() > dy.abs()
    return torch.stack(
        [horizontal & (dx < 0), horizontal & (dx > 0), ~horizontal & (dy < 0), ~horizontal & (dy > 0)], dim=1
    ).to(centres.dtype)
