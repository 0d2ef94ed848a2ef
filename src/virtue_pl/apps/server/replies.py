"""Replies in the forms of OpenAI and of Cohere."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.apps.server.calibration import Calibration
from virtue_pl.embedder import convert_vectors
from virtue_pl.embedder.row_details import RowDetails
from virtue_pl.embedder.vectors import CALIBRATED
from virtue_pl.preprocessing.segmentations import box_of, encode_mask
from virtue_pl.types.requests import EmbeddingRequest


class EmbeddedRow(NamedTuple):
    """The embedding of a row, its details, and the (height, width) of its first image, None without one.

    Example:
        >>> EmbeddedRow(torch.zeros(4), RowDetails(tokens=3)).details.tokens
        3
    """

    vector: Tensor
    details: RowDetails
    size: tuple[int, int] | None = None


class PredictedMask(NamedTuple):
    """A mask over the whole image as it is predicted, the image's size, and the IoU that is expected of the mask.

    Example:
        >>> PredictedMask(torch.tensor([[False, True]]), (2, 4), 0.8).resize().tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """

    mask: Bool[Tensor, "height width"]
    size: tuple[int, int]
    iou: float

    def resize(self) -> np.ndarray:
        """Return the mask at the image's size, 0 and 1; one is resized after the other, since they may be large."""
        found = interpolate(self.mask[None, None].to(torch.uint8), size=self.size, mode="nearest-exact")[0, 0]
        return np.asfortranarray(found.numpy())


def reply_openai(
    rows: Sequence[EmbeddedRow], requests: Sequence[EmbeddingRequest], model: str, form: str, dim: int | None
) -> dict[str, Any]:
    """Return embeddings as OpenAI's list; a row of a region has it beside its embedding.

    form: "float" or "base64", little-endian float32. dim: the number of first dimensions, scaled to length 1 again.
    """
    vectors = as_float32(convert_vectors(stack(rows), dim))
    encoded = [encode_base64(vector) for vector in vectors] if form == "base64" else vectors.tolist()
    named = name_regions(requests, rows)
    data = [
        {"object": "embedding", "index": index, "embedding": embedding, **region}
        for index, (embedding, region) in enumerate(zip(encoded, named, strict=True))
    ]
    return {"object": "list", "data": data, "model": model, "usage": count_usage(rows)}


def reply_cohere(
    rows: Sequence[EmbeddedRow],
    requests: Sequence[EmbeddingRequest],
    kinds: Sequence[str],
    dim: int | None,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Return embeddings by their types, as Cohere does. Raises VirtueError for a type without its calibration."""
    stacked = stack(rows)
    found: dict[str, Any] = {}
    meta: dict[str, Any] = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": count_tokens(rows)}}
    for kind in dict.fromkeys(kinds):
        precision = "float32" if kind in ("float", "base64") else kind
        ranges = None
        if precision in CALIBRATED and calibration is not None:
            ranges, meta["calibration"] = calibration.ranges(dim), calibration.describe()
        vectors = convert_vectors(stacked, dim, precision=precision, calibration=ranges)
        if kind == "base64":
            found[kind] = [encode_base64(vector) for vector in as_float32(vectors)]
        else:
            found[kind] = vectors.tolist()
    return {
        "id": str(uuid.uuid4()),
        "embeddings": found,
        "texts": [request.full_text for request in requests if not request.has_image],
        "meta": meta,
        "response_type": "embeddings_by_type",
    }


def reply_masks(masks: Sequence[PredictedMask], request: EmbeddingRequest, model: str) -> dict[str, Any]:
    """Return masks at the image's size as COCO's run lengths.

    Each has its area, its box (xyxy) in pixels, and the IoU that is expected of it.
    """
    data = [
        {"object": "mask", "index": index, **describe_mask(found), "region": region}
        for index, (found, region) in enumerate(zip(masks, list_regions(request), strict=True))
    ]
    return {"object": "list", "data": data, "model": model}


def describe_mask(found: PredictedMask) -> dict[str, Any]:
    """Return a mask's run lengths, its area in pixels, its box, null where it is empty, and the IoU expected of it."""
    mask = found.resize()
    box = box_of(mask)
    return {
        "mask": encode_mask(mask),
        "area": int(mask.sum()),
        "box": None if box is None else list(box),
        "predicted_iou": round(found.iou, 4),
    }


def name_regions(requests: Sequence[EmbeddingRequest], rows: Sequence[EmbeddedRow]) -> Iterator[dict[str, Any]]:
    """Yield what each row of requests has beside its embedding: the region that it is of, if any.

    That is the region as it was given, the box of the mask that the segmentation model takes it for, and the IoU that
    it expects of that mask.
    """
    remaining = iter(rows)
    for request in requests:
        if request.regions_as == "joint":
            next(remaining)
            yield {}
            continue
        for region in list_regions(request):
            yield {"region": region | describe_prediction(next(remaining), request.units)}


def list_regions(request: EmbeddingRequest) -> Iterator[dict[str, Any]]:
    """Yield each region of a request as it was given, but for its mask, with its number and units."""
    for number, region in enumerate(request.regions):
        given = region.model_dump(mode="json", exclude_none=True, exclude={"mask"})
        yield {"index": number, "units": request.units, **given}


def describe_prediction(row: EmbeddedRow, units: str) -> dict[str, Any]:
    """Return the box (xyxy) of a row's predicted mask, null where it is empty, and its expected IoU."""
    details = row.details
    if details.iou is None or row.size is None:
        return {}
    height, width = row.size if units == "pixel" else (1, 1)
    digits = 1 if units == "pixel" else 4
    x1, y1, x2, y2 = details.box or (0, 0, 0, 0)
    box = [round(edge, digits) for edge in (x1 * width, y1 * height, x2 * width, y2 * height)]
    return {"predicted_box": box if details.box else None, "predicted_iou": round(details.iou, 4)}


def count_tokens(rows: Sequence[EmbeddedRow]) -> int:
    """Return the tokens that the language model has read of rows."""
    return sum(row.details.tokens for row in rows)


def count_usage(rows: Sequence[EmbeddedRow]) -> dict[str, int]:
    """Return the tokens of rows as OpenAI does."""
    tokens = count_tokens(rows)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def stack(rows: Sequence[EmbeddedRow]) -> Float[Tensor, "rows dim"]:
    """Return the embeddings of rows."""
    return torch.stack([row.vector for row in rows])


def as_float32(vectors: Any) -> np.ndarray:
    """Return vectors as an array of little-endian float32."""
    return np.ascontiguousarray(vectors.numpy(), dtype="<f4")


def encode_base64(vector: np.ndarray) -> str:
    """Return a vector's bytes in base64."""
    return base64.b64encode(vector.tobytes()).decode("ascii")
