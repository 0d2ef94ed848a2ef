"""Encoder of queries: the whole model, or its fusion head without segment tokens or with RoI-pooled vision tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align

from virtue_pl.evaluation.settings import Stream
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.prompts import enclosing_box
from virtue_pl.types import EncoderBatch, ImageFeatures, SegmentTokens, VirtueError
from virtue_pl.types.layout import group_by_owner

ROI_GRID_SIZE = 4
"""Tokens across and down a pooled box."""
POINT_BOX_SIZE = 0.4
"""Extent of the square around a point, as a share of the image's shorter edge."""


class QueryEncoder:
    """Encoder of rows; the frozen networks run once for each image of a batch, however many rows use it.

    Args:
        model: Virtue or a fusion head.
        stream: "whole": the whole model. "none": its language model without segment tokens. "roi": the vision tokens of
            each prompt's box, pooled to `ROI_GRID_SIZE` x `ROI_GRID_SIZE`, take the position of segment tokens; nothing
            is trained for it.
        chunk_size: rows encoded at once.

    Example:
        >>> encoder = QueryEncoder(model, "none", chunk_size=8)  # doctest: +SKIP
        >>> encoder.encode(model.collator.encoder_batch(items)).shape
        torch.Size([2, 384])
    """

    def __init__(self, model: EmbeddingModel, stream: Stream, chunk_size: int) -> None:
        self.model = model
        self.stream = stream
        self.chunk_size = chunk_size

    @property
    def head(self) -> VLMFusionHead:
        """The model's fusion head. Raises VirtueError for a model without one."""
        if isinstance(self.model, Virtue):
            return self.model.fusion
        if not isinstance(self.model, VLMFusionHead):
            raise VirtueError(
                f"{type(self.model).__name__} has no fusion head, expected Virtue or VLMFusionHead: set `stream` to"
                " whole"
            )
        return self.model

    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return unit embeddings in float32, (rows, embed_dim)."""
        if len(inputs.images):
            inputs = inputs.with_images(replace(inputs.images, features=self.features(inputs)))
        return torch.cat([self._rows(chunk).float() for chunk in inputs.split(self.chunk_size)])

    def features(self, inputs: EncoderBatch) -> tuple[ImageFeatures, ...]:
        """Return each image's frozen features in input order.

        Those of the segmentation model are computed only for images with a prompt.
        """
        if isinstance(self.model, Virtue) and self.stream == "whole":
            return self.model.encode_streams(inputs.images, list(dict.fromkeys(inputs.prompts.owners)))
        return self.head.image_features(inputs.images)

    def _rows(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        if self.stream == "whole":
            return self.model.encode(inputs)
        return self.head(inputs, self.roi_tokens(inputs) if self.stream == "roi" and len(inputs.prompts) else None)

    def roi_tokens(self, inputs: EncoderBatch) -> SegmentTokens:
        """Return the pooled vision tokens of each prompt's box, or of the whole image for an empty prompt."""
        tokens = self.head.backbone.vision_tokens(self.head.frozen_features(inputs.images))
        sizes = [image_size(inputs, number) for number in range(len(tokens))]
        maps = [token_map(found, size) for found, size in zip(tokens, sizes, strict=True)]
        prompts = inputs.prompts.to("cpu")
        pooled: dict[int, Tensor] = {}
        boxes = [
            enclosing_box(prompt, sizes[image], POINT_BOX_SIZE)
            for prompt, image in zip(prompts.prompts, prompts.owners, strict=True)
        ]
        for numbers in group_by_owner([maps[image].shape for image in prompts.owners]).values():
            together = torch.stack([maps[prompts.owners[number]] for number in numbers])
            pooled.update(zip(numbers, pool_boxes(together, [boxes[number] for number in numbers]), strict=True))
        return SegmentTokens(torch.stack([pooled[number] for number in range(len(prompts))]))


def image_size(inputs: EncoderBatch, number: int) -> tuple[int, int]:
    """Return (height, width) of an image in pixels, as the vision tower reads it."""
    pixels = inputs.images.vision[number]
    return (1, 1) if pixels is None else (pixels.shape[-2], pixels.shape[-1])


def token_map(tokens: Float[Tensor, "tokens hidden"], size: tuple[int, int]) -> Float[Tensor, "hidden rows columns"]:
    """Return an image's tokens as a map, in the layout nearest to the aspect ratio of `size`, (height, width)."""
    count, ratio = len(tokens), size[0] / size[1]
    rows = min(
        (rows for rows in range(1, count + 1) if count % rows == 0),
        key=lambda rows: abs(torch.log(torch.tensor(rows * rows / count / ratio)).item()),
    )
    return tokens.T.reshape(-1, rows, count // rows)


def pool_box(
    tokens: Float[Tensor, "hidden rows columns"], box: Float[Tensor, "4"] | None
) -> Float[Tensor, "pooled hidden"]:
    """Return the tokens of a box (normalised, xyxy) or of the whole map, pooled to `ROI_GRID_SIZE` squared."""
    return pool_boxes(tokens[None], [box])[0]


def pool_boxes(
    maps: Float[Tensor, "boxes hidden rows columns"], boxes: Sequence[Float[Tensor, "4"] | None]
) -> Float[Tensor, "boxes pooled hidden"]:
    """Return what `pool_box` does for several boxes, each on a map of its own; all maps have one size."""
    rows, columns = maps.shape[2:]
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])
    corners = torch.stack([whole if box is None else box.cpu().float() for box in boxes])
    scaled = corners * torch.tensor([columns, rows, columns, rows])
    numbered = torch.cat([torch.arange(float(len(boxes)))[:, None], scaled], dim=1).to(maps.device)
    pooled = roi_align(maps.float(), numbered, ROI_GRID_SIZE, aligned=True)
    return pooled.flatten(2).transpose(1, 2).to(maps.dtype)


def check_finite(embeddings: Float[Tensor, "rows dim"], sources: Sequence[str]) -> None:
    """Raise VirtueError naming the set and number of the first row that is not finite."""
    broken = (~embeddings.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise VirtueError(
            f"{sources[broken[0]]}: its embedding is not finite ({len(broken)} of {len(embeddings)} of its "
            "batch), expected numbers: "
            "the weights are damaged or the training diverged, or dtype is too narrow; try --dtype float32 or "
            "an earlier checkpoint"
        )
