"""Ranks against a literal double loop, and a rank table that is the same over processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from virtue_pl.metrics.rank_metrics import HitRate, RankTable
from virtue_pl.metrics.ranking import (
    RankRow,
    RankRows,
    gold_ranks,
    pad_lists,
    rank_candidates,
    sample_ranks,
    set_blind_ranks,
    set_blind_scores,
)
from virtue_pl.types import EmbeddingInput, RankingSample, VirtueError


def literal_rank(scores: Sequence[float], gold: int) -> int:
    rank = 0
    for position, score in enumerate(scores):
        if position != gold and score >= scores[gold]:
            rank += 1
    return rank


before_update = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric .* was called before:UserWarning")
few_levels = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(few_levels, min_size=1, max_size=5), st.data())
def test_lists_of_different_length_rank_as_one_by_one(lists: list[list[float]], data: st.DataObject) -> None:
    gold = [data.draw(st.integers(0, len(scores) - 1)) for scores in lists]
    longest = max(map(len, lists))
    padded = torch.tensor([scores + [9.0] * (longest - len(scores)) for scores in lists])
    valid = torch.tensor([[position < len(scores) for position in range(longest)] for scores in lists])
    expected = [literal_rank(scores, right) for scores, right in zip(lists, gold, strict=True)]
    assert gold_ranks(padded, valid, torch.tensor(gold)).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(few_levels, st.data())
def test_the_order_of_candidates_changes_no_rank(scores: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(scores))))
    moved = torch.tensor([[scores[position] for position in order]])
    rank = gold_ranks(torch.tensor([scores]), None, torch.tensor([0]))
    assert gold_ranks(moved, None, torch.tensor([order.index(0)])).equal(rank)


@settings(max_examples=60, deadline=None)
@given(few_levels, st.data())
def test_a_full_ranking_agrees_with_the_rank(scores: list[float], data: st.DataObject) -> None:
    gold = torch.tensor([data.draw(st.integers(0, len(scores) - 1))])
    ranking = rank_candidates(torch.tensor([scores]), gold)[0].tolist()
    assert sorted(ranking) == list(range(len(scores)))
    assert [scores[position] for position in ranking] == sorted(scores, reverse=True)
    assert ranking.index(int(gold)) == gold_ranks(torch.tensor([scores]), None, gold).item()


def test_a_model_that_scores_all_alike_is_never_right() -> None:
    assert gold_ranks(torch.zeros(3, 10), None, torch.tensor([0, 4, 9])).tolist() == [9, 9, 9]


def test_without_gold_equal_candidates_keep_their_order() -> None:
    assert rank_candidates(torch.tensor([[0.0, 1.0, 0.0, 1.0]])).tolist() == [[1, 3, 0, 2]]


def test_scores_that_are_no_numbers_are_refused_but_not_in_padding() -> None:
    scores = torch.tensor([[0.1, 0.2], [0.3, float("nan")]])
    assert gold_ranks(scores, torch.tensor([[True, True], [True, False]]), torch.tensor([0, 0])).tolist() == [1, 0]
    with pytest.raises(VirtueError, match=r"1 of 2 queries .*row 1"):
        gold_ranks(scores, None, torch.tensor([0, 0]))


def test_set_blind_scores_are_cosines_to_the_mean_of_the_others() -> None:
    candidates = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for position, score in enumerate(set_blind_scores(candidates).tolist()):
        others = torch.stack([candidate for other, candidate in enumerate(candidates) if other != position]).mean(dim=0)
        assert score == pytest.approx(torch.cosine_similarity(candidates[position], others, dim=0).item(), abs=1e-6)
    assert set_blind_scores(candidates[:1]).tolist() == [0.0]


def sample(key: str, count: int, rankings: dict[str, tuple[int, ...]], task: str = "seen") -> RankingSample:
    return RankingSample(
        key, task, EmbeddingInput(), tuple(EmbeddingInput(f"caption {i}") for i in range(count)), rankings
    )


def scored(number: int, key_prefix: str = "sample") -> tuple[list[RankingSample], list[Tensor]]:
    generator = torch.Generator().manual_seed(number)
    counts = [3 + i % 3 for i in range(number)]
    samples = [
        sample(
            f"{key_prefix}-{i}",
            count,
            {"hit@1": tuple(range(count)), "object": (0, count - 1)},
            task=("seen", "held_out")[i % 2],
        )
        for i, count in enumerate(counts)
    ]
    return samples, [torch.randn(count, generator=generator) for count in counts]


def test_every_ranking_of_every_sample_is_ranked_by_its_own_list() -> None:
    samples, scores = scored(7)
    ranked = sample_ranks(samples, scores)
    literal = [
        literal_rank([row[i].item() for i in items], 0)
        for one, row in zip(samples, scores, strict=True)
        for items in one.rankings.values()
    ]
    assert ranked.ranks.tolist() == literal
    assert ranked.in_ranking("object").tolist() == literal[1::2]
    assert (ranked.keys[2], ranked.tasks[2], ranked.candidates[2:4]) == ("sample-1", "held_out", (4, 2))


def test_set_blind_ranks_look_at_each_list_alone() -> None:
    samples, _ = scored(5)
    generator = torch.Generator().manual_seed(1)
    embeddings = [torch.randn(len(one.candidates), 6, generator=generator) for one in samples]
    expected = [
        literal_rank(set_blind_scores(rows[list(items)]).tolist(), 0)
        for one, rows in zip(samples, embeddings, strict=True)
        for items in one.rankings.values()
    ]
    assert set_blind_ranks(samples, embeddings).ranks.tolist() == expected


def test_no_sample_gives_no_rank() -> None:
    assert len(sample_ranks([], []).ranks) == 0
    assert [part.tolist() for part in pad_lists([])] == [[], []]


def test_scores_for_another_number_of_candidates_are_refused() -> None:
    samples, scores = scored(2)
    with pytest.raises(
        VirtueError, match=r"2 samples are scored on \[3, 3\] candidates, expected 2 samples with \[3, 4\]"
    ):
        sample_ranks(samples, [scores[0], scores[0]])


def test_rows_are_sorted_and_a_sample_counts_once_by_its_worst_rank() -> None:
    rows = [
        RankRow("b", "box", "hit@1", "1", 2, 10),
        RankRow("a", "box", "hit@1", "2", 0, 10),
        RankRow("b", "box", "hit@1", "1", 0, 10),
    ]
    table = RankRows(rows)
    assert [(row.task, row.rank) for row in table] == [("a", 0), ("b", 2)]
    assert table.ranks("b", "box", "hit@1") == {"1": 2}
    assert list(table.groups()) == [("a", "box", "hit@1"), ("b", "box", "hit@1")]


def fill(table: RankTable, rate: HitRate, samples: list[RankingSample], scores: list[Tensor]) -> None:
    for start in range(0, len(samples), 2):
        ranked = sample_ranks(samples[start : start + 2], scores[start : start + 2])
        table.update("box", ranked)
        rate.update(ranked.in_ranking("hit@1"))


@before_update
def test_a_table_is_emptied_by_reset() -> None:
    table, rate = RankTable(), HitRate(k=2)
    fill(table, rate, *scored(5))
    assert len(table.compute()) == 10
    assert rate.compute().item() == pytest.approx(
        sum(row.rank < 2 for row in table.compute() if row.ranking == "hit@1") / 5
    )
    table.reset()
    assert len(table.compute()) == 0
    assert HitRate().compute().item() == 0


SHARES = {
    "uneven, with one sample twice": ((0, 5), (4, 7)),
    "one process has nothing": ((0, 7), (7, 7)),
    "none has anything": ((0, 0), (0, 0)),
}


def process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for name, shares in SHARES.items():
        table, rate = RankTable(), HitRate()
        samples, scores = scored(7)
        fill(table, rate, samples[slice(*shares[rank])], scores[slice(*shares[rank])])
        results[name] = [list(table.compute()), list(table.compute()), rate.compute().item()]
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
@before_update
def test_two_processes_give_the_table_of_one(tmp_path: Path) -> None:
    # Forked, as starting anew costs each process seconds of imports; nothing here runs a backward pass.
    torch.multiprocessing.start_processes(process, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    table, rate = RankTable(), HitRate()
    fill(table, rate, *scored(7))
    rows = [list(row) for row in table.compute()]
    first, second, third = (results[0][name] for name in SHARES)
    assert first[0] == first[1] == second[0] == rows
    assert second[2] == pytest.approx(rate.compute().item())
    assert third == [[], [], 0.0]
