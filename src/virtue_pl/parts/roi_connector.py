"""RoI pooling, the baseline for the predicted mask: the prompt's own area says what is inside, and no mask is predicted for it.

The two classes go together: one passes on where the prompt is, the other pools there.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.parts.connector import MaskConnector
from virtue_pl.parts.segmentation_extractor import SegmentationExtractor
from virtue_pl.types import Pictures, PromptTokens, SegmentFeatures, VirtueError


class RoiExtractor(SegmentationExtractor):
    """A `SegmentationExtractor` that also tells the connector where the prompt is (`SegmentFeatures.focus`)."""

    def forward(self, pictures: Pictures, tokens: PromptTokens) -> SegmentFeatures:
        return replace(super().forward(pictures, tokens), focus=tokens.focus)


class RoiConnector(MaskConnector):
    """A `MaskConnector` to which the prompt's own area is the object.

    A box covers each place by the share of its area that lies in the box; a point is the bell that `DenseHints` draws around it,
    and a mask is itself.
    """

    def inside(self, features: SegmentFeatures) -> Float[Tensor, "prompts height width"]:
        if features.focus is None:
            raise VirtueError("RoiConnector is not told where the prompt is: use RoiExtractor for `segmentation`, and dense_hints in the prompt encoder")
        return interpolate(features.focus[:, None], size=features.image.shape[-2:], mode="area")[:, 0]
