"""Replies in the forms of OpenAI and of Cohere."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virtue_pl.embedder import convert_vectors
from virtue_pl.preprocessing.segmentations import box_of, encode_mask
from virtue_pl.types.requests import EmbeddingRequest


def reply_openai(
    rows: Sequence[Tensor], requests: Sequence[EmbeddingRequest], tokens: int, model: str, form: str, dim: int | None
) -> dict[str, Any]:
    """Return embeddings as OpenAI's list; a row of a region has it beside its embedding.

    form: "float" or "base64", little-endian float32. dim: the number of first dimensions, scaled to length 1 again.
    """
    vectors = as_float32(convert_vectors(torch.stack(list(rows)), dim))
    encoded = [encode_base64(vector) for vector in vectors] if form == "base64" else vectors.tolist()
    data = [
        {"object": "embedding", "index": index, "embedding": embedding, **region}
        for index, (embedding, region) in enumerate(zip(encoded, name_regions(requests), strict=True))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def reply_cohere(
    rows: Sequence[Tensor], requests: Sequence[EmbeddingRequest], tokens: int, kinds: Sequence[str], dim: int | None
) -> dict[str, Any]:
    """Return embeddings by their types, as Cohere does. Raises VirtueError for a type that needs a calibration."""
    stacked = torch.stack(list(rows))
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds):
        precision = "float32" if kind in ("float", "base64") else kind
        vectors = convert_vectors(stacked, dim, precision=precision)
        if kind == "base64":
            found[kind] = [encode_base64(vector) for vector in as_float32(vectors)]
        else:
            found[kind] = vectors.tolist()
    return {
        "id": str(uuid.uuid4()),
        "embeddings": found,
        "texts": [request.full_text for request in requests if not request.images],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
        "response_type": "embeddings_by_type",
    }


def reply_masks(masks: Sequence[np.ndarray], request: EmbeddingRequest, model: str) -> dict[str, Any]:
    """Return masks at the image's size as COCO's run lengths, each with its area and box (xyxy) in pixels."""
    data = [
        {"object": "mask", "index": index, "mask": encode_mask(mask), **measure(mask), **region}
        for index, (mask, region) in enumerate(zip(masks, name_regions([request]), strict=True))
    ]
    return {"object": "list", "data": data, "model": model}


def name_regions(requests: Sequence[EmbeddingRequest]) -> Iterator[dict[str, Any]]:
    """Yield what each row of requests has beside its embedding: the region that it is of, if any."""
    for request in requests:
        if request.regions_as == "joint":
            yield {}
            continue
        for number, region in enumerate(request.regions):
            given = region.model_dump(mode="json", exclude_none=True, exclude={"mask"})
            yield {"region": {"index": number, "units": request.units, **given}}


def as_float32(vectors: Any) -> np.ndarray:
    """Return vectors as an array of little-endian float32."""
    return np.ascontiguousarray(vectors.numpy(), dtype="<f4")


def encode_base64(vector: np.ndarray) -> str:
    """Return a vector's bytes in base64."""
    return base64.b64encode(vector.tobytes()).decode("ascii")


def measure(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask's area in pixels and its box, null where it is empty."""
    box = box_of(mask)
    return {"area": int(mask.sum()), "box": None if box is None else list(box)}
