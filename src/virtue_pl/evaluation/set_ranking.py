"""From embeddings to ranks: every row of a set against its own candidates, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from virtue_pl.metrics.ranking import RankTable, SampleRanks, rank_candidates, sample_ranks, set_blind_ranks, set_blind_scores
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.parts.preprocess import content_id
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, RankingSample

NUMBERS_AT_ONCE, ROWS_AT_ONCE = 32_000_000, 2048
"""Bounds of what is ranked at once: numbers in the candidates' embeddings, and rows."""
NOTHING = EmbeddingInput()
Guess = Literal["set_blind", "random"]
Line = dict[str, Any]


@dataclass(frozen=True)
class SetRanking:
    """Ranks one set.

    mode: how it is asked. guess: scores that know nothing of the query, in place of cosines.
    embeddings: of all distinct inputs, by number; may be empty for a random guess.
    """

    ranked: RankedSet
    mode: str
    guess: Guess | None
    embeddings: Float[Tensor, "inputs dim"]

    @property
    def shown_mode(self) -> str:
        """What tables call the mode: sets without regions are asked with their picture alone."""
        regions = any(row.region is not None for row in self.ranked.rows)
        return self.guess or (self.mode if regions or self.mode == "blind" else "no_prompt")

    def chunks(self, places: Sequence[int]) -> Iterator[Sequence[int]]:
        longest = max((len(self.ranked.candidates[place]) for place in places), default=1)
        size = min(ROWS_AT_ONCE, max(1, NUMBERS_AT_ONCE // max(1, longest * self.embeddings.shape[1])))
        return (places[start : start + size] for start in range(0, len(places), size))

    @torch.no_grad()
    def rank(self, number: int, places: Sequence[int], metrics: RetrievalMetrics, table: RankTable) -> Iterator[list[Line]]:
        """Ranks the rows at `places`, and gives lines for predictions.jsonl; the metrics know the set by `number`."""
        for chosen in self.chunks(places):
            samples = [self.sample(self.ranked.rows[place]) for place in chosen]
            candidates = [] if self.guess == "random" else [self.embeddings[self.ranked.candidates[place]] for place in chosen]
            scores = self.scores(chosen, candidates)
            blind = candidates and (self.guess == "set_blind" or self.ranked.about.benchmark.startswith("scar"))
            nearest = set_blind_ranks(samples, candidates) if blind else None
            if nearest is not None:
                table.update("set_blind", nearest)
            entries = nearest if nearest is not None and self.guess == "set_blind" else sample_ranks(samples, scores)
            if self.guess != "set_blind":
                table.update(self.shown_mode, entries)
            metrics.update(number, entries.of("hit@1").to(metrics.device))
            yield list(self.lines([self.ranked.rows[place] for place in chosen], samples, scores, entries))

    def scores(self, chosen: Sequence[int], candidates: Sequence[Float[Tensor, "candidates dim"]]) -> list[Float[Tensor, " candidates"]]:
        """Of each row's candidates, in its order."""
        if self.guess == "random":
            return [random_scores(self.ranked.rows[place]) for place in chosen]
        if self.guess == "set_blind":
            return [set_blind_scores(found) for found in candidates]
        queries = self.embeddings[self.ranked.queries[list(chosen)]]
        return [found @ query for found, query in zip(candidates, queries, strict=True)]

    def sample(self, row: EvaluationRow) -> RankingSample:
        return RankingSample(row.key, f"{self.ranked.about.benchmark}/{self.ranked.about.name}", NOTHING, row.candidates, row.rankings, row.region)

    def lines(
        self, rows: Sequence[EvaluationRow], samples: Sequence[RankingSample], scores: Sequence[Float[Tensor, " candidates"]], entries: SampleRanks
    ) -> Iterator[Line]:
        """set, row, mode; ranking: candidates' places from best to worst; scores in the candidates' order; ranks: {ranking: [rank, of how many]}."""
        named = zip(entries.rankings, entries.ranks.tolist(), entries.candidates, strict=True)
        mode = self.shown_mode
        for row, sample, found, order in zip(rows, samples, scores, orders(scores), strict=True):
            yield {
                "set": row.set,
                "row": row.row,
                "mode": mode,
                "task": sample.task,
                "key": row.key,
                "gold": 0,
                "ranking": order.tolist(),
                "scores": [round(score, 7) for score in found.tolist()],
                "ranks": {name: [rank, length] for name, rank, length in (next(named) for _ in sample.rankings)},
            }


def orders(scores: Sequence[Float[Tensor, " candidates"]]) -> Iterator[Int[Tensor, " candidates"]]:
    """Each row's candidates from best to worst, the right one last of its equals."""
    padded = pad_sequence(list(scores), batch_first=True, padding_value=float("-inf"))
    ranked = rank_candidates(padded, torch.zeros(len(padded), dtype=torch.long))
    return (order[: len(found)] for order, found in zip(ranked, scores, strict=True))


def random_scores(row: EvaluationRow) -> Float[Tensor, " candidates"]:
    """Chance, the same for the same row every time."""
    return torch.rand(len(row.candidates), generator=torch.Generator().manual_seed(content_id("guess", row.key)))
