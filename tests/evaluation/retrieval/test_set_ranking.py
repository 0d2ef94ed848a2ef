"""Ranking whole sets, against a literal loop: candidates that queries share or not, ties, cut lists, and baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from virtue_pl.evaluation.reports.failures import score
from virtue_pl.evaluation.retrieval import candidate_scores, set_ranking
from virtue_pl.evaluation.retrieval.candidate_scores import cosines, rank_by_score
from virtue_pl.evaluation.retrieval.set_ranking import SetRanking
from virtue_pl.evaluation.settings import Baseline
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.ranking import RankRows, set_blind_ranks
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, RankingSample, SetDescription

Rankings = Sequence[Mapping[str, tuple[int, ...]]]
DIM = 24


def embedded(count: int, seed: int = 0) -> Float[Tensor, "inputs dim"]:
    return normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def ranked_set(
    candidates: Sequence[Int[Tensor, " candidates"]], rankings: Rankings | None = None, benchmark: str = "mmeb"
) -> RankedSet:
    """Queries are the first inputs."""
    named = rankings or [{"hit@1": tuple(range(len(found)))} for found in candidates]
    rows = tuple(
        EvaluationRow(
            "quiz", row, "", "", "", None, None, None, (EmbeddingInput("a caption"),) * len(found), named[row]
        )
        for row, found in enumerate(candidates)
    )
    return RankedSet(SetDescription("quiz", benchmark), rows, torch.arange(len(rows)), tuple(candidates))


def lines_of(
    ranked: RankedSet,
    embeddings: Float[Tensor, "inputs dim"],
    baseline: Baseline | None = None,
    full_lists: int = 10_000,
) -> tuple[list[dict[str, Any]], RankRows, dict[str, float]]:
    metrics, table = RetrievalMetrics(["quiz"]), RankTable()
    ranking = SetRanking(ranked, "box", baseline, embeddings, full_lists)
    found = [line for lines in ranking.rank(0, range(len(ranked.rows)), metrics, table) for line in lines]
    return found, table.compute(), metrics.compute()["quiz"]


def pool_lists(rows: int, pool: int, lengths: Sequence[int], seed: int = 1) -> list[Int[Tensor, " candidates"]]:
    """Lists out of one pool behind the queries, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [rows + torch.randperm(pool, generator=generator)[: lengths[row % len(lengths)]] for row in range(rows)]


@pytest.mark.parametrize(
    "candidates",
    [pool_lists(7, 30, [30]), pool_lists(7, 30, [30, 12, 1]), pool_lists(7, 400, [5, 3])],
    ids=["one pool", "lengths", "own"],
)
def test_rows_are_ranked_as_a_literal_loop_ranks_them(candidates):
    embeddings = embedded(7 + 400)
    lines, ranks, metrics = lines_of(ranked_set(candidates), embeddings)
    for row, (line, numbers) in enumerate(zip(lines, candidates, strict=True)):
        scores = [float(embeddings[number].double() @ embeddings[row].double()) for number in numbers]
        rank = sum(other >= scores[0] for other in scores[1:])
        assert line["scores"] == pytest.approx(scores, abs=1e-7)
        assert line["ranking"] == sorted(range(len(scores)), key=lambda place: -scores[place])
        assert (
            line["ranks"] == {"hit@1": [rank, len(scores)]}
            and ranks.ranks("mmeb/quiz", "no_prompt", "hit@1")[f"quiz/{row}"] == rank
        )
    assert metrics["hit@1"] == pytest.approx(sum(line["ranking"][0] == 0 for line in lines) / 7) and metrics["n"] == 7


def test_one_pool_and_lists_of_ones_own_are_scored_alike(monkeypatch):
    """To the last bit, however many rows and candidates are taken at once."""
    embeddings, candidates = embedded(9 + 50), pool_lists(9, 50, [50, 41])
    shared = cosines(embeddings[:9], candidates, embeddings)
    monkeypatch.setattr(candidate_scores, "POOL_AT_ONCE", 7)
    monkeypatch.setattr(candidate_scores, "NUMBERS_AT_ONCE", 5 * DIM)
    in_parts = cosines(embeddings[:9], candidates, embeddings)
    monkeypatch.setattr(candidate_scores, "SHARED", 0)
    apart = cosines(embeddings[:9], candidates, embeddings)
    alone = [cosines(embeddings[[row]], [candidates[row]], embeddings)[0] for row in range(9)]
    assert all(
        torch.equal(one, other) for found in (in_parts, apart, alone) for one, other in zip(shared, found, strict=True)
    )


@pytest.mark.parametrize("numbers_at_once", [1, 120, 10**9])
def test_what_is_ranked_at_once_changes_nothing(monkeypatch, numbers_at_once):
    embeddings, ranked = embedded(11 + 60), ranked_set(pool_lists(11, 60, [60, 20]))
    whole = lines_of(ranked, embeddings)[0]
    monkeypatch.setattr(set_ranking, "NUMBERS_AT_ONCE", numbers_at_once)
    assert lines_of(ranked, embeddings)[0] == whole


@pytest.mark.parametrize(("rows", "pool", "length"), [(5, 37, 37), (5, 300, 9), (1, 13, 13)])
def test_a_model_that_embeds_everything_alike_is_never_right(rows, pool, length):
    """The right candidate stands first in each list and comes last of its equals, of a shared pool and of lists of
    one's own.
    """
    lines, _, metrics = lines_of(
        ranked_set(pool_lists(rows, pool, [length])), embedded(1).expand(rows + pool, DIM).contiguous()
    )
    assert all(
        line["ranks"]["hit@1"] == [length - 1, length] and line["ranking"] == [*range(1, length), 0] for line in lines
    )
    assert metrics["hit@1"] == 0


def test_ties_with_the_right_candidate_count_against_it():
    embeddings = embedded(4)[[0, 1, 2, 1, 3]]
    (line,), _, _ = lines_of(ranked_set([torch.tensor([1, 2, 3, 4, 1])]), embeddings)
    above = sum(other > line["scores"][0] for other in line["scores"])
    assert line["ranks"]["hit@1"] == [above + 2, 5] and line["ranking"][above : above + 3] == [2, 4, 0]


@pytest.mark.parametrize("count", [None, 1, 4, 9, 40])
def test_rank_by_score_is_a_stable_sort_with_the_right_one_last_of_its_equals(count):
    generator = np.random.default_rng(3)
    scores = generator.choice(
        np.array([-1.0, -0.25, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0], dtype=np.float32), size=(50, 9)
    )
    for row, found in zip(scores.tolist(), rank_by_score(torch.from_numpy(scores), count).tolist(), strict=True):
        assert found == sorted(range(9), key=lambda place: (-row[place], place == 0, place))[:count]


def test_long_lists_are_cut_and_their_ranks_are_not(monkeypatch):
    """Lists of up to 20 are whole, whatever stands beside them."""
    monkeypatch.setattr(candidate_scores, "MAX_LISTED", 6)
    embeddings, ranked = embedded(8 + 40), ranked_set(pool_lists(8, 40, [40, 20]))
    whole, cut = lines_of(ranked, embeddings)[0], lines_of(ranked, embeddings, full_lists=20)[0]
    for row, (line, short) in enumerate(zip(whole, cut, strict=True)):
        assert short["ranks"] == line["ranks"]
        if row % 2:
            assert short == line
            continue
        assert "scores" not in short and short["ranking"] == line["ranking"][:6]
        assert (
            short["ranking_scores"] == [line["scores"][index] for index in short["ranking"]]
            and short["gold_score"] == line["scores"][0]
        )
        assert [score(short, index) for index in (*short["ranking"], 0)] == [
            score(line, index) for index in (*short["ranking"], 0)
        ]
    assert json.loads(json.dumps(cut)) == cut


@pytest.mark.parametrize("baseline", [None, "set_blind"])
def test_set_blind_ranks_within_each_ranking(baseline):
    """Rows of several lists, as SCaR-mini has them: each candidate is near or far from the others of the list, not of
    all that the row names.
    """
    rankings = [
        {"hit@1": (0, 1, 2, 3), "hit@1_published": (0, 4, 5, 6, 7), "object": (0, 1, 4), "relation": (0, 5)},
        {"hit@1": (0, 2, 1), "hit@1_published": (0, 3, 4, 5), "object": (0, 5, 4, 3)},
        {"hit@1": (0, 1, 2, 3), "hit@1_published": (0, 7, 6, 5, 4), "scene": (0, 6, 2)},
    ]
    embeddings, candidates = embedded(3 + 30, seed=5), pool_lists(3, 30, [8, 6, 8])
    ranked = ranked_set(candidates, rankings, "scar_mini")
    samples = [
        RankingSample(
            f"quiz/{row}",
            "scar_mini/quiz",
            EmbeddingInput(),
            (EmbeddingInput("a caption"),) * len(found),
            rankings[row],
        )
        for row, found in enumerate(candidates)
    ]
    expected = set_blind_ranks(samples, [embeddings[numbers] for numbers in candidates])
    lines, ranks, metrics = lines_of(ranked, embeddings, baseline)
    of_all = {
        (key, name): rank
        for key, name, rank in zip(expected.keys, expected.rankings, expected.ranks.tolist(), strict=True)
    }
    assert {(row.key, row.ranking): row.rank for row in ranks if row.mode == "set_blind"} == of_all
    if baseline == "set_blind":
        assert {row.mode for row in ranks} == {"set_blind"}
        assert [line["ranks"] for line in lines] == [
            {name: [of_all[f"quiz/{row}", name], len(members)] for name, members in named.items()}
            for row, named in enumerate(rankings)
        ]
        assert metrics["hit@1"] == sum(of_all[f"quiz/{row}", "hit@1"] == 0 for row in range(3)) / 3
    for row, named in enumerate(rankings):
        for name, members in named.items():
            of_list = embeddings[candidates[row][list(members)]].double()
            nearness = [round(float(cosine_similarity(one, of_list.sum(0) - one, dim=0)), 9) for one in of_list]
            assert of_all[f"quiz/{row}", name] == sum(other >= nearness[0] for other in nearness[1:])
