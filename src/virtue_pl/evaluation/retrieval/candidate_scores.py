"""Scores and orders of every row's candidates, whether rows share their candidates or not.

Cosines are summed in float64 and rounded once, so that they depend neither on the rows that are ranked together nor on
the process, and equal embeddings have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

POOL_AT_ONCE, NUMBERS_AT_ONCE = 8192, 1_000_000
"""Bounds of what is copied at once: embeddings of a pool; numbers in embeddings of candidates that rows do not share.
"""
SHARED = 8
"""A pool is scored as a whole where that gives at most this many times the scores needed: a matrix product costs less
than copies.
"""
MAX_LISTED = 1000
"""Candidates in a line of predictions.jsonl whose list is truncated."""
DECIMALS = 7
INDEX_BITS = 31
"""Bits of a sort key that hold the candidate's index."""


def cosines(
    queries: Float[Tensor, "rows dim"],
    candidates: Sequence[Int[Tensor, " candidates"]],
    embeddings: Float[Tensor, "inputs dim"],
) -> list[Float[Tensor, " candidates"]]:
    """Return each query's cosines with its candidates, which are row indices of `embeddings`, in their order."""
    flat, lengths = torch.cat(list(candidates)), [len(each) for each in candidates]
    seen = torch.zeros(len(embeddings), dtype=torch.bool)
    seen[flat] = True
    pool = seen.nonzero().flatten()
    if len(pool) * len(queries) > SHARED * len(flat):
        return list(score_own_lists(queries, flat, lengths, embeddings))
    column_of = torch.zeros(len(embeddings), dtype=torch.long)
    column_of[pool] = torch.arange(len(pool))
    scores = score_pool(queries, pool, embeddings)
    return [row[columns] for row, columns in zip(scores, column_of[flat].split(lengths), strict=True)]


def score_pool(
    queries: Float[Tensor, "rows dim"], pool: Int[Tensor, " pool"], embeddings: Float[Tensor, "inputs dim"]
) -> Float[Tensor, "rows pool"]:
    """Return the scores of every query with every candidate of the pool."""
    columns, scores = queries.double().T, torch.empty(len(pool), len(queries))
    for start in range(0, len(pool), POOL_AT_ONCE):
        scores[start : start + POOL_AT_ONCE] = embeddings[pool[start : start + POOL_AT_ONCE]].double() @ columns
    return scores.T.contiguous()


def score_own_lists(
    queries: Float[Tensor, "rows dim"],
    flat: Int[Tensor, " scores"],
    lengths: Sequence[int],
    embeddings: Float[Tensor, "inputs dim"],
) -> Iterator[Float[Tensor, " candidates"]]:
    """Return the scores of every query with candidates of its own.

    flat: the candidates of all queries, one query after the other. lengths: number of each query's candidates.
    """
    rows, size = torch.repeat_interleave(torch.tensor(lengths)), max(1, NUMBERS_AT_ONCE // max(1, embeddings.shape[1]))
    parts = zip(flat.split(size), rows.split(size), strict=True)
    return iter(
        torch.cat(
            [
                torch.linalg.vecdot(embeddings[chosen].double(), queries[owners].double()).float()
                for chosen, owners in parts
            ]
        ).split(lengths)
    )


def rank_by_score(scores: Float[Tensor, "rows candidates"], count: int | None = None) -> Int[np.ndarray, "rows count"]:
    """Return the indices of every row's candidates from the best to the worst, or the first `count` of them.

    Ties keep their order, but the first candidate, which is the right one, comes last among its ties. Scores are
    finite, or -inf where a row is shorter.

    One integer holds a score, as bits that rise where the score falls, and an index: sorting these is several times
    faster than a stable argsort.
    """
    bits = (scores.float() + 0.0).numpy().view(np.int32).astype(np.int64)  # +0.0: the two zeros are equal
    keys = np.where(bits < 0, bits + (1 << 32), 0x7FFFFFFF - bits) << INDEX_BITS
    keys += np.where(np.arange(keys.shape[1]) == 0, keys.shape[1], np.arange(keys.shape[1]))
    if count is not None and count < keys.shape[1]:
        keys = np.partition(keys, count, axis=1)[:, :count]
    found = np.sort(keys, axis=1) & ((1 << INDEX_BITS) - 1)
    return np.where(found == scores.shape[1], 0, found)


def prediction_lists(scores: Sequence[Float[Tensor, " candidates"]], full_lists: int) -> Iterator[dict[str, Any]]:
    """Yield each row's scores as fields of its line of predictions.jsonl.

    ranking: candidates' indices from best to worst; scores: in the candidates' order. A row with more than
    `full_lists` candidates has only the best `MAX_LISTED` in `ranking`, and instead of `scores` it has
    `ranking_scores`, in the order of `ranking`, and `gold_score`.
    """
    if max(map(len, scores), default=0) > full_lists:
        yield from (prediction_list(row, full_lists) for row in scores)
        return
    padded = pad_sequence(list(scores), batch_first=True, padding_value=float("-inf"))
    found = np.round(padded.double().numpy(), DECIMALS)
    for row, order, rounded in zip(scores, rank_by_score(padded), found, strict=True):
        yield {"ranking": order[order < len(row)].tolist(), "scores": rounded[: len(row)].tolist()}


def prediction_list(scores: Float[Tensor, " candidates"], full_lists: int) -> dict[str, Any]:
    """Return one row's scores as fields of its line, see `prediction_lists`."""
    cut = len(scores) > full_lists
    ranking, rounded = (
        rank_by_score(scores[None], MAX_LISTED if cut else None)[0],
        np.round(scores.double().numpy(), DECIMALS),
    )
    if not cut:
        return {"ranking": ranking.tolist(), "scores": rounded.tolist()}
    return {"ranking": ranking.tolist(), "ranking_scores": rounded[ranking].tolist(), "gold_score": float(rounded[0])}
