"""The candidates of an evaluation row, read alike from official files and for shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virtue_pl.types import DataError


def check_candidates(candidates: Sequence[tuple[str, Any]], key: str) -> None:
    """Raise DataError for a query without candidates, and for one with neither text nor image."""
    if not candidates:
        raise DataError(key, "the query has no candidate: expected the right one and others")
    for index, (text, image) in enumerate(candidates):
        if not text and not image:
            raise DataError(key, f"missing candidate: number {index} has neither text nor image")


def drop_gold_repeats(candidates: Sequence[Any], indices: Sequence[int]) -> tuple[int, ...]:
    """Return the indices to rank, the right candidate's first, without those of candidates that are equal to it.

    Whoever answers with a repeat is right, so it is no distractor.
    """
    gold = candidates[indices[0]]
    return (indices[0], *(index for index in indices[1:] if candidates[index] != gold))
