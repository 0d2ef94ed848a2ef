"""RoI pooling, the baseline for the predicted mask: the prompt's own area says what is inside, and no mask is predicted
for it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.models.connector import MaskConnector
from virtue_pl.types import SegmentFeatures, VirtueError


class RoiConnector(MaskConnector):
    """A `MaskConnector` to which the prompt's own area is the object.

    A box covers each place by the share of its area that lies in the box; a point is the bell that `DenseHints` draws
    around it,
    and a mask is itself.
    """

    def inside(self, features: SegmentFeatures) -> Float[Tensor, "prompts height width"]:
        if features.focus is None:
            raise VirtueError(
                "RoiConnector is not told where the prompt is: set dense_hints in the prompt encoder and the"
                " segmentation backbone"
            )
        return interpolate(features.focus[:, None], size=features.image.shape[-2:], mode="area")[:, 0]
