"""Ranking of a set: every row against its own candidates, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.evaluation.retrieval.candidate_scores import cosines, prediction_lists
from virtue_pl.evaluation.settings import Baseline, ReportOptions
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.ranking import SampleRanks, sample_ranks, set_blind_ranks, set_blind_scores
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.preprocessing.contrastive_collator import content_id
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, RankingSample

NUMBERS_AT_ONCE, ROWS_AT_ONCE = 16_000_000, 2048
"""Bounds of what is ranked at once: scores, or numbers in the candidates' embeddings where these are compared to each
other; and rows.
"""
NO_QUERY = EmbeddingInput()
Line = dict[str, Any]


@dataclass(frozen=True)
class SetRanking:
    """Ranks the rows of one set.

    mode: how queries point at their region. baseline: scores that know nothing of the query, in place of cosines.
    embeddings: of all distinct inputs, by number; may be empty for a random baseline.
    full_lists: the longest list of candidates whose line has all of them.

    Example:
        >>> ranking = SetRanking(ranked, "box", None, embeddings)
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
        """Whether candidates are compared to each other: where that is asked for, and beside every result of SCaR."""
        return self.baseline == "set_blind" or (
            self.baseline is None and self.ranked.about.benchmark.startswith("scar")
        )

    @property
    def reported_mode(self) -> str:
        """Name of the mode in tables: queries of sets without regions are their image alone."""
        regions = any(row.region is not None for row in self.ranked.rows)
        return self.baseline or (self.mode if regions or self.mode == "blind" else "no_prompt")

    def chunks(self, places: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split rows so that what is ranked at once stays within bounds."""
        longest = max((len(self.ranked.candidates[place]) for place in places), default=1)
        numbers = longest * (self.embeddings.shape[1] if self.ranks_set_blind else 1)
        size = min(ROWS_AT_ONCE, max(1, NUMBERS_AT_ONCE // max(1, numbers)))
        return (places[start : start + size] for start in range(0, len(places), size))

    @torch.no_grad()
    def rank(
        self, number: int, places: Sequence[int], metrics: RetrievalMetrics, table: RankTable
    ) -> Iterator[Iterator[Line]]:
        """Rank the rows at `places`, and return their lines of predictions.jsonl. number: of the set in the metrics."""
        for chosen in self.chunks(places):
            samples = [self.sample(self.ranked.rows[place]) for place in chosen]
            nearest = set_blind_ranks(samples, self.candidates(chosen)) if self.ranks_set_blind else None
            if nearest is not None:
                table.update("set_blind", nearest)
            scores = self.scores(chosen)
            entries = nearest if nearest is not None and self.baseline == "set_blind" else sample_ranks(samples, scores)
            if self.baseline != "set_blind":
                table.update(self.reported_mode, entries)
            metrics.update(number, entries.of("hit@1").to(metrics.device))
            yield self.lines([self.ranked.rows[place] for place in chosen], samples, scores, entries)

    def candidates(self, chosen: Sequence[int]) -> list[Float[Tensor, "candidates dim"]]:
        """Return the embeddings of each row's candidates."""
        return [self.embeddings[self.ranked.candidates[place]] for place in chosen]

    def scores(self, chosen: Sequence[int]) -> list[Float[Tensor, " candidates"]]:
        """Return the scores of each row's candidates, in its order."""
        if self.baseline == "random":
            return [random_scores(self.ranked.rows[place]) for place in chosen]
        if self.baseline == "set_blind":
            return [set_blind_scores(found) for found in self.candidates(chosen)]
        queries = self.embeddings[self.ranked.queries[list(chosen)]]
        return cosines(queries, [self.ranked.candidates[place] for place in chosen], self.embeddings)

    def sample(self, row: EvaluationRow) -> RankingSample:
        """Return the row as a sample to rank."""
        return RankingSample(
            row.key,
            f"{self.ranked.about.benchmark}/{self.ranked.about.name}",
            NO_QUERY,
            row.candidates,
            row.rankings,
            row.region,
        )

    def lines(
        self,
        rows: Sequence[EvaluationRow],
        samples: Sequence[RankingSample],
        scores: Sequence[Float[Tensor, " candidates"]],
        entries: SampleRanks,
    ) -> Iterator[Line]:
        """Return lines with set, row, mode; what `prediction_lists` gives; ranks: {ranking: [rank, of how many]}."""
        named = zip(entries.rankings, entries.ranks.tolist(), entries.candidates, strict=True)
        mode = self.reported_mode
        for row, sample, found in zip(rows, samples, prediction_lists(scores, self.full_lists), strict=True):
            yield {
                "set": row.set,
                "row": row.row,
                "mode": mode,
                "task": sample.task,
                "key": row.key,
                "gold": 0,
                **found,
                "ranks": {name: [rank, length] for name, rank, length in (next(named) for _ in sample.rankings)},
            }


def random_scores(row: EvaluationRow) -> Float[Tensor, " candidates"]:
    """Return random scores, the same for the same row every time."""
    return torch.rand(len(row.candidates), generator=torch.Generator().manual_seed(content_id("guess", row.key)))
