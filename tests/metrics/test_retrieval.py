"""Retrieval metrics: as recorded from the published implementation, as pytrec_eval and a literal loop have them, over
any processes.
"""

from __future__ import annotations

import json
import math

import pytest
import pytrec_eval
import torch

from fixtures.recorded import GOLDEN
from virtue_pl.metrics.ranking import gold_ranks, rank_candidates
from virtue_pl.metrics.retrieval import RetrievalMetrics, metric_names, metrics_of_ranks, retrieval_metrics
from virtue_pl.types import VirtueError

RECORDED = json.loads((GOLDEN / "metrics.json").read_text())
ROUNDING = 1e-12


def cases() -> list[tuple[list[str], set[str], bool, dict[str, float]]]:
    found = []
    for case, metrics in zip(RECORDED["cases"], RECORDED["per_case"], strict=True):
        labels = case["label"] if isinstance(case["label"], list) else [case["label"]]
        found.append((case["prediction"], set(labels), case["rel_scores"] is not None, metrics))
    return found


def found_metrics(prediction: list[str], labels: set[str]) -> dict[str, float]:
    relevant = torch.tensor([[name in labels for name in prediction]])
    return dict(zip(metric_names(), retrieval_metrics(relevant, torch.tensor([len(labels)]))[0].tolist(), strict=True))


@pytest.mark.parametrize("number", range(len(RECORDED["cases"])))
def test_it_gives_the_recorded_metrics(number):
    prediction, labels, graded, expected = cases()[number]
    found = found_metrics(prediction, labels)
    compared = {
        name.replace("ndcg_linear", "ndcg"): value for name, value in expected.items() if "exponential" not in name
    }
    assert compared.keys() >= found.keys()
    for name, value in found.items():
        if not (graded and name.startswith("ndcg")):
            assert value == pytest.approx(compared[name], abs=ROUNDING), name


def literal(relevance: list[bool], total: int, k: int) -> dict[str, float]:
    """The definitions, one query at a time."""
    top = relevance[:k]
    hits = sum(top)
    gain = sum(1 / math.log2(position + 2) for position, hit in enumerate(top) if hit)
    ideal = sum(1 / math.log2(position + 2) for position in range(min(k, total)))
    precisions = [sum(top[: position + 1]) / (position + 1) for position, hit in enumerate(top) if hit]
    first = next((1 / (position + 1) for position, hit in enumerate(top) if hit), 0.0)
    return {
        f"hit@{k}": float(hits > 0),
        f"recall@{k}": hits / total,
        f"ndcg@{k}": gain / ideal,
        f"map@{k}": sum(precisions) / min(k, total),
        f"mrr@{k}": first,
    }


@pytest.mark.parametrize("candidates", [1, 3, 10, 40])
def test_it_gives_what_a_literal_loop_and_pytrec_eval_give(candidates):
    generator = torch.Generator().manual_seed(candidates)
    relevant = torch.rand(25, candidates, generator=generator) < 0.3
    unranked = torch.randint(0, 3, (25,), generator=generator)
    total = (relevant.sum(dim=1) + unranked).clamp(min=1)
    found = [dict(zip(metric_names(), row, strict=True)) for row in retrieval_metrics(relevant, total).tolist()]
    truth = {
        str(q): {f"d{position}": 1 for position, hit in enumerate(row) if hit}
        for q, row in enumerate(relevant.tolist())
    }
    for q, of_query in truth.items():
        of_query |= {f"unranked{number}": 1 for number in range(int(total[int(q)]) - len(of_query))}
    run = {str(q): {f"d{position}": float(candidates - position) for position in range(candidates)} for q in range(25)}
    judged = pytrec_eval.RelevanceEvaluator(
        truth, {"P_1", "P_5", "P_10", "recall_1", "recall_5", "recall_10", "ndcg_cut_1", "ndcg_cut_5", "ndcg_cut_10"}
    )
    outside = judged.evaluate(run)
    for q, row in enumerate(relevant.tolist()):
        for k in (1, 5, 10):
            for name, value in literal(row, int(total[q]), k).items():
                assert found[q][name] == pytest.approx(value, abs=ROUNDING), name
            for ours, theirs in (
                (f"precision@{k}", f"P_{k}"),
                (f"recall@{k}", f"recall_{k}"),
                (f"ndcg@{k}", f"ndcg_cut_{k}"),
            ):
                assert found[q][ours] == pytest.approx(outside[str(q)][theirs], abs=1e-9), ours


def test_a_query_without_anything_relevant_has_nothing():
    assert retrieval_metrics(torch.zeros(2, 4, dtype=torch.bool), torch.tensor([0, 3])).abs().max() == 0


def test_ranks_are_a_short_way_to_one_right_candidate():
    scores = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    gold = torch.arange(30) % 12
    order = rank_candidates(scores, gold)
    torch.testing.assert_close(
        metrics_of_ranks(gold_ranks(scores, None, gold)),
        retrieval_metrics(order == gold[:, None], torch.ones(30, dtype=torch.long)),
    )


@pytest.mark.parametrize("gold", [0, 3, 6])
def test_ties_favour_no_position(gold):
    """A model that scores everything alike is right nowhere; one that knows the right candidate is right everywhere."""
    positions, alike = torch.tensor([gold]), torch.zeros(1, 7)
    assert rank_candidates(alike, positions)[0].tolist() == [position for position in range(7) if position != gold] + [
        gold
    ]
    assert metrics_of_ranks(gold_ranks(alike, None, positions))[0, :5].sum() == 0
    assert rank_candidates(alike.index_fill(1, positions, 1.0), positions)[0, 0] == gold


def test_long_lists_are_ranked_in_one_go():
    scores = torch.randn(4, 100_000, generator=torch.Generator().manual_seed(1))
    gold = torch.tensor([0, 5, 99_999, 7])
    ranks = gold_ranks(scores, None, gold)
    assert ranks.tolist() == [
        int((row > row[position]).sum()) for row, position in zip(scores, gold.tolist(), strict=True)
    ]


def test_sums_of_processes_are_the_whole():
    ranks = torch.tensor([0, 4, 11, 0, 2])
    whole, parts = RetrievalMetrics(["a", "b"]), [RetrievalMetrics(["a", "b"]) for _ in range(3)]
    whole.update(1, ranks)
    parts[0].update(1, ranks[:2])
    parts[2].update(1, ranks[2:])
    joined = RetrievalMetrics(["a", "b"])
    joined.update(0, ranks[:0])
    joined.sums, joined.counts = sum(part.sums for part in parts), sum(part.counts for part in parts)
    assert list(joined.compute()) == list(whole.compute()) == ["b"] and joined.compute()["b"] == pytest.approx(
        whole.compute()["b"], abs=ROUNDING
    )
    assert whole.compute()["b"]["hit@1"] == 0.4 and whole.compute()["b"]["n"] == 5


def test_a_rank_below_zero_is_no_rank():
    with pytest.raises(VirtueError, match="a: a rank is -1"):
        RetrievalMetrics(["a"]).update(0, torch.tensor([2, -1]))
