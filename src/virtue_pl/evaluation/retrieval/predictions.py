"""Predictions, one line for each query: the ranked candidates, their scores, and the rank of the right one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from virtue_pl.evaluation.retrieval.query_content import ContentDigest
from virtue_pl.metrics.ranking import RankRow, RankRows, rank_candidates, sample_ranks
from virtue_pl.types import RankingBatch, RankingOutput

Prediction = dict[str, Any]


def predictions(batch: RankingBatch, output: RankingOutput) -> Iterator[Prediction]:
    """Yield a line for every sample of a batch in every mode that `output` has scored, the first ones of the batch.

    A line has task, key, mode; image, the key of the query's image; content, the checksum of its data; gold, an index
    into the sample's candidates; ranking, such indices from best to worst; scores, in the candidates' order; ranks,
    {ranking's name: [rank, number of candidates]}.
    """
    digest = ContentDigest()
    contents = [
        digest(sample.query.text, sample.query.image_keys, sample.region, sample.candidates, sample.rankings)
        for sample in batch.samples
    ]
    for number, mode in enumerate(batch.modes[: len(output.scores) // len(batch)]):
        scores = output.scores[number * len(batch) : (number + 1) * len(batch)]
        ranked = sample_ranks(batch.samples, scores)
        entries = zip(ranked.rankings, ranked.ranks.tolist(), ranked.candidates, strict=True)
        for sample, content, row in zip(batch.samples, contents, scores, strict=True):
            gold = next(iter(sample.rankings.values()))[0]
            yield {
                "task": sample.task,
                "key": sample.key,
                "mode": mode,
                "image": next(iter(sample.query.image_keys), ""),
                "content": content,
                "gold": gold,
                "ranking": rank_candidates(row[None], row.new_tensor([gold]).long())[0].tolist(),
                "scores": [round(score, 6) for score in row.tolist()],
                "ranks": {
                    ranking: [rank, candidates] for ranking, rank, candidates in islice(entries, len(sample.rankings))
                },
            }


def read_predictions(path: str | Path) -> RankRows:
    """Read the ranks in a file of predictions."""
    with Path(path).open(encoding="utf-8") as lines:
        return RankRows(row for line in lines for row in _rows(json.loads(line)))


def _rows(prediction: Prediction) -> Iterator[RankRow]:
    image, content = prediction.get("image", ""), prediction.get("content", "")  # not in older files
    for ranking, (rank, candidates) in prediction["ranks"].items():
        yield RankRow(
            prediction["task"], prediction["mode"], ranking, prediction["key"], rank, candidates, image, content
        )
