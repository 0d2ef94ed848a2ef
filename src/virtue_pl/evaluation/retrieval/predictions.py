"""Predictions, one line for each query: the ranked candidates, their scores, and the rank of the right one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from virtue_pl.evaluation.retrieval.query_content import ContentDigest
from virtue_pl.metrics.ranking import RankRow, RankRows, rank_candidates, sample_ranks
from virtue_pl.types import RankingBatch, RankingOutput, VirtueError

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
    """Read the ranks in a file of predictions. Raises VirtueError, which names the line, for one that is damaged."""
    rows: list[RankRow] = []
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows += _rows(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = " ".join(str(error).split())[:100]
                raise VirtueError(f"{path}, line {number}, is no prediction ({reason}): test the run again") from error
    return RankRows(rows)


def _rows(prediction: Prediction) -> Iterator[RankRow]:
    image, content = prediction.get("image", ""), prediction.get("content", "")  # not in older files
    for ranking, (rank, candidates) in prediction["ranks"].items():
        row = RankRow(
            prediction["task"], prediction["mode"], ranking, prediction["key"], rank, candidates, image, content
        )
        types = (str, str, str, str, int, int, str, str)
        if not all(isinstance(value, kind) for value, kind in zip(row, types, strict=True)):
            raise TypeError(f"found {row}")
        yield row
