"""Calibration of integer embeddings: the range of each dimension, of embeddings of data like those to come."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from virtue_pl.embedder import Embedder, convert_vectors
from virtue_pl.types import VirtueError

MOST_ROWS = 4096
"""Rows that are drawn, without replacement, where there are more."""


class Calibration:
    """The smallest and the largest value of each dimension, between which int8 and uint8 have 256 steps.

    Args:
        rows: unit embeddings [rows, dim], two or more.
        source: where they are from, for the replies.

    Example:
        >>> calibration = Calibration(np.eye(3, dtype=np.float32), "runs/encoded")
        >>> calibration.ranges(None)[1].tolist(), calibration.ranges(2)[1].tolist()
        ([1.0, 1.0, 1.0], [1.0, 1.0])
    """

    def __init__(self, rows: np.ndarray, source: str) -> None:
        if rows.ndim != 2 or len(rows) < 2:
            raise VirtueError(f"{source}: {len(rows)} rows are too few for a calibration, expected two or more")
        self.rows = rows
        self.source = source
        self.ranges = lru_cache(maxsize=64)(self._find_ranges)
        """Called with `dim`; returns the ranges [2, dim] of embeddings cut to their first dimensions."""

    @classmethod
    def read(cls, source: str, embedder: Embedder, seed: int = 0) -> Calibration:
        """Return the calibration of encoded rows, see `RowFiles.open`.

        Raises VirtueError for rows of another model, of another length, or too few.
        """
        from virtue_pl.search import RowFiles
        from virtue_pl.search.row_files import to_matrix

        files = RowFiles.open(source)
        if files.facts.fingerprint != embedder.fingerprint() or files.facts.dim != embedder.embed_dim:
            raise VirtueError(
                f"--calibration {source} was encoded by {files.facts.model} with {files.facts.dim} numbers, expected"
                f" whole embeddings of {embedder.embed_dim} by this model: encode such data with it"
            )
        chosen = np.zeros(files.rows, dtype=bool)
        chosen[np.random.default_rng(seed).choice(files.rows, min(MOST_ROWS, files.rows), replace=False)] = True
        parts, start = [], 0
        for batch in files.batches():
            parts.append(to_matrix(batch.column("vector"))[chosen[start : start + len(batch)]])
            start += len(batch)
        return cls(np.concatenate(parts), source)

    def _find_ranges(self, dim: int | None) -> np.ndarray:
        cut = np.asarray(convert_vectors(torch.from_numpy(self.rows), dim))
        return np.stack([cut.min(axis=0), cut.max(axis=0)])

    def describe(self) -> dict[str, Any]:
        """Return what the calibration is, for a reply."""
        return {"rows": len(self.rows), "steps": "256 between the smallest and the largest value of each dimension"}
