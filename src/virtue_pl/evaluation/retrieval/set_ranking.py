"""Ranking of a set: every row against its own candidates, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.evaluation.retrieval.candidate_scores import cosines, prediction_lists
from virtue_pl.evaluation.retrieval.query_content import ContentDigest
from virtue_pl.evaluation.settings import Baseline, ReportOptions
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.ranking import SampleRanks, sample_ranks, set_blind_ranks, set_blind_scores
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.preprocessing.contrastive_collator import content_id
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, RankingSample

NUMBERS_AT_ONCE, ROWS_AT_ONCE = 16_000_000, 2048
"""Bounds of a chunk: scores, or numbers in the candidates' embeddings where these are compared to each other; rows."""
NO_QUERY = EmbeddingInput()
Line = dict[str, Any]


@dataclass(frozen=True)
class SetRanking:
    """Ranking of the rows of one set.

    mode: how queries give their region. baseline: scores that do not depend on the query, instead of cosines.
    embeddings: those of all distinct inputs, by index; may be empty for a random baseline.
    full_lists: the longest list of candidates that is written in full.

    Example:
        >>> ranking = SetRanking(ranked, "box", None, embeddings)  # doctest: +SKIP
        >>> for lines in ranking.rank(0, range(len(ranked.rows)), RetrievalMetrics(["ADE20K"]), RankTable()):
        ...     file.writelines(json.dumps(line) for line in lines)
    """

    ranked: RankedSet
    mode: str
    baseline: Baseline | None
    embeddings: Float[Tensor, "inputs dim"]
    full_lists: int = ReportOptions.full_lists

    @property
    def ranks_set_blind(self) -> bool:
        """True where candidates are compared to each other: by that baseline, and beside every result of SCaR."""
        return self.baseline == "set_blind" or (
            self.baseline is None and self.ranked.about.benchmark.startswith("scar")
        )

    @property
    def reported_mode(self) -> str:
        """Name of the mode in tables: "no_prompt" for sets without regions, whose queries are their image alone."""
        regions = any(row.compact_region is not None for row in self.ranked.rows)
        return self.baseline or (self.mode if regions or self.mode == "blind" else "no_prompt")

    def chunks(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split row indices into chunks that stay within the bounds of memory."""
        longest = max((len(self.ranked.candidates[row]) for row in rows), default=1)
        numbers = longest * (self.embeddings.shape[1] if self.ranks_set_blind else 1)
        size = min(ROWS_AT_ONCE, max(1, NUMBERS_AT_ONCE // max(1, numbers)))
        return (rows[start : start + size] for start in range(0, len(rows), size))

    @torch.no_grad()
    def rank(
        self, number: int, rows: Sequence[int], metrics: RetrievalMetrics, table: RankTable
    ) -> Iterator[Iterator[Line]]:
        """Rank rows by index, and yield each chunk's lines of predictions.jsonl. number: the set's in the metrics."""
        digest = ContentDigest()
        for chosen in self.chunks(rows):
            samples = [self.sample(self.ranked.rows[row]) for row in chosen]
            nearest = set_blind_ranks(samples, self.candidates(chosen)) if self.ranks_set_blind else None
            if nearest is not None:
                table.update("set_blind", nearest)
            scores = self.scores(chosen)
            entries = nearest if nearest is not None and self.baseline == "set_blind" else sample_ranks(samples, scores)
            if self.baseline != "set_blind":
                table.update(self.reported_mode, entries)
            metrics.update(number, entries.in_ranking("hit@1").to(metrics.device))
            yield self.lines([self.ranked.rows[row] for row in chosen], samples, scores, entries, digest)

    def candidates(self, chosen: Sequence[int]) -> list[Float[Tensor, "candidates dim"]]:
        """Return the embeddings of each row's candidates."""
        return [self.embeddings[self.ranked.candidates[row]] for row in chosen]

    def scores(self, chosen: Sequence[int]) -> list[Float[Tensor, " candidates"]]:
        """Return the scores of each row's candidates, in their order."""
        if self.baseline == "random":
            return [random_scores(self.ranked.rows[row]) for row in chosen]
        if self.baseline == "set_blind":
            return [set_blind_scores(found) for found in self.candidates(chosen)]
        queries = self.embeddings[self.ranked.queries[list(chosen)]]
        return cosines(queries, [self.ranked.candidates[row] for row in chosen], self.embeddings)

    def sample(self, row: EvaluationRow) -> RankingSample:
        """Return the row as a sample to rank, which needs no region."""
        return RankingSample(
            row.key,
            f"{self.ranked.about.benchmark}/{self.ranked.about.name}",
            NO_QUERY,
            row.candidates,
            row.rankings,
        )

    def lines(
        self,
        rows: Sequence[EvaluationRow],
        samples: Sequence[RankingSample],
        scores: Sequence[Float[Tensor, " candidates"]],
        entries: SampleRanks,
        digest: ContentDigest,
    ) -> Iterator[Line]:
        """Yield lines: set, row, mode, task, key, image, content, gold, the fields of `prediction_lists`, ranks.

        image: the key of the query's image. content: the checksum of its data. ranks: {ranking: [rank, number of
        candidates]}.
        """
        named = zip(entries.rankings, entries.ranks.tolist(), entries.candidates, strict=True)
        mode = self.reported_mode
        for row, sample, found in zip(rows, samples, prediction_lists(scores, self.full_lists), strict=True):
            yield {
                "set": row.set,
                "row": row.row,
                "mode": mode,
                "task": sample.task,
                "key": row.key,
                "image": row.image or "",
                "content": digest(row.text, [row.image] if row.image else [], row.region, row.candidates, row.rankings),
                "gold": 0,
                **found,
                "ranks": {name: [rank, length] for name, rank, length in (next(named) for _ in sample.rankings)},
            }


def random_scores(row: EvaluationRow) -> Float[Tensor, " candidates"]:
    """Return random scores, the same for the same row every time."""
    return torch.rand(len(row.candidates), generator=torch.Generator().manual_seed(content_id("guess", row.key)))
