"""The form of embeddings: their length, their norm and the type of their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from virtue_pl.types import VirtueError

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
"""Types of an embedding's numbers; a binary one has a bit a dimension, eight of which are one number."""

CALIBRATED = ("int8", "uint8")
"""Types whose steps are drawn between the smallest and the largest value of each dimension of other embeddings."""


def convert_vectors(
    embeddings: Float[Tensor, "rows dim"],
    truncate_dim: int | None = None,
    unit: bool = True,
    precision: str = "float32",
    calibration: Any = None,
) -> Tensor | np.ndarray:
    """Return unit embeddings cut to their first dimensions, and in another type of numbers.

    float32 and float16 are tensors; the other types are arrays, as `quantize_embeddings` of sentence-transformers makes
    them.

    Args:
        embeddings: of length 1.
        truncate_dim: the number of first dimensions, as a model trained by `MatryoshkaLoss` admits; None for all.
        unit: scale those that are cut back to length 1.
        precision: one of `PRECISIONS`.
        calibration: for int8 and uint8: embeddings [rows, dim] of data like those to come, or the two rows of the
            smallest and the largest value of each dimension.

    Raises:
        VirtueError: a dimension beyond the embedding's, another precision, or int8 and uint8 without calibration.

    Example:
        >>> convert_vectors(torch.tensor([[0.6, 0.0, 0.8]]), truncate_dim=2)
        tensor([[1., 0.]])
        >>> convert_vectors(torch.tensor([[0.6, 0.0, 0.8]]), precision="float16").dtype
        torch.float16
    """
    dim = embeddings.shape[1]
    if truncate_dim is not None and not 1 <= truncate_dim <= dim:
        raise VirtueError(f"truncate_dim is {truncate_dim}, expected from 1 to the embedding's {dim}")
    if precision not in PRECISIONS:
        raise VirtueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if truncate_dim is not None and truncate_dim < dim:
        embeddings = embeddings[:, :truncate_dim]
        embeddings = normalize(embeddings, dim=-1) if unit else embeddings.contiguous()
    if precision in ("float32", "float16"):
        return embeddings.to(getattr(torch, precision))
    if precision in CALIBRATED:
        calibration = calibration_rows(calibration, embeddings.shape[1], precision)
    return quantize(embeddings.numpy(), precision, calibration)


def calibration_rows(calibration: Any, dim: int, precision: str) -> np.ndarray:
    """Return the embeddings that integers are calibrated by. Raises VirtueError for none, or of another length."""
    if calibration is None:
        raise VirtueError(
            f"precision is {precision!r} without `calibration`, expected embeddings of data like those to come: of the"
            " rows at hand alone, equal vectors would get other numbers in another batch"
        )
    rows = np.asarray(calibration, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] < dim or len(rows) < 2:
        raise VirtueError(f"calibration of shape {list(rows.shape)}, expected [2 rows or more, {dim}]")
    return rows[:, :dim]


def quantize(embeddings: np.ndarray, precision: str, calibration: np.ndarray | None) -> np.ndarray:
    """Return embeddings as integers: signs by numpy, steps by sentence-transformers.

    Raises VirtueError where that is not installed.
    """
    if precision not in CALIBRATED:
        bits = np.packbits(embeddings > 0, axis=1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    try:
        from sentence_transformers.util.quantization import quantize_embeddings
    except ImportError as error:
        raise VirtueError(
            f"precision {precision!r} needs sentence-transformers: pip install 'virtue_pl[sentence-transformers]'"
        ) from error
    ranges = None if calibration is None else np.stack([calibration.min(axis=0), calibration.max(axis=0)])
    found: np.ndarray = quantize_embeddings(embeddings, precision, ranges)  # type: ignore[arg-type, assignment]
    return found
