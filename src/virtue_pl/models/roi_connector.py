"""RoI pooling, the baseline for mask pooling: the prompt's own area is the object, and no mask is predicted."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.models.connector import MaskConnector
from virtue_pl.types import SegmentFeatures, VirtueError


class RoiConnector(MaskConnector):
    """A `MaskConnector` whose object is the prompt's own area.

    A box covers each cell by the share of the cell's area that lies in the box; a point is the Gaussian that
    `DenseHints` draws around it; a mask is itself.

    Example:
        >>> import torch
        >>> from virtue_pl.types import FeatureWidths
        >>> connector = RoiConnector(FeatureWidths(embedding=8, image=12), hidden_size=10)
        >>> embedding, image, focus = torch.randn(3, 8, 16, 16), torch.randn(3, 12, 16, 16), torch.rand(3, 16, 16)
        >>> connector(SegmentFeatures(embedding, image, None, torch.zeros(8, 16, 16), focus)).tokens.shape
        torch.Size([3, 10, 10])
    """

    requires = frozenset({"focus"})

    def object_weights(self, features: SegmentFeatures) -> Float[Tensor, "prompts height width"]:
        """Return the share of each cell of `features.image` that the prompt covers, in [0, 1].

        Raises VirtueError where the prompt encoder does not draw it (`dense_hints`).
        """
        if features.focus is None:
            raise VirtueError(
                "RoiConnector reads the prompt's area, but the prompt encoder draws none: set dense_hints to true in"
                " the prompt encoder and the segmentation backbone"
            )
        return interpolate(features.focus[:, None], size=features.image.shape[-2:], mode="area")[:, 0]
