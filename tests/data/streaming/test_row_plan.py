"""Plans of rows: every row once in a pass, equal targets apart, and a state that is enough to go on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtue_pl.data.shards.manifest import Manifest, Shard, ShardFolder
from virtue_pl.data.streaming.options import SamplingOptions
from virtue_pl.data.streaming.row_plan import PlanState, RowOrder, RowPartners, RowPlan
from virtue_pl.types import VirtueError

LAYOUTS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=6).filter(
    lambda shards: sum(map(sum, shards)) > 0
)


def folder_of(shards: list[list[int]]) -> ShardFolder:
    """A folder of shards with so many rows in each record, of which only the manifest is there."""
    found = tuple(
        Shard(f"{number}.tar", len(counts), sum(counts), 0, "", tuple(counts)) for number, counts in enumerate(shards)
    )
    return ShardFolder(Path("none"), Manifest("mini", "pairs", "t", "t", "", "", found))


def order_of(shards: list[list[int]], images: int = 3, rows: int = 1, seed: int = 0) -> RowOrder:
    return RowOrder(folder_of(shards), SamplingOptions(shuffle_buffer=images, sample_buffer=rows), seed)


@settings(deadline=None, max_examples=60)
@given(LAYOUTS, st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_a_pass_has_every_row_once(shards: list[list[int]], images: int, rows: int, number: int) -> None:
    found = order_of(shards, images, rows).rows_of_pass(number).tolist()
    assert sorted(found) == list(range(sum(map(sum, shards))))


@settings(deadline=None, max_examples=30)
@given(LAYOUTS)
def test_a_row_is_located_in_its_record(shards: list[list[int]]) -> None:
    located = [
        (shard, record, position)
        for shard, counts in enumerate(shards)
        for record, count in enumerate(counts)
        for position in range(count)
    ]
    order = order_of(shards)
    assert [order.locate(row) for row in range(len(located))] == located


def test_passes_differ_and_rows_of_an_image_stay_together() -> None:
    order = order_of([[2, 3], [1, 2], [3, 1]], images=4)
    passes = [order.rows_of_pass(number).tolist() for number in range(4)]
    assert len({tuple(one) for one in passes}) == 4
    for one in passes:
        images = [order.locate(row)[:2] for row in one]
        assert sum(a != b for a, b in pairwise(images)) == 5
    assert order_of([[2, 3], [1, 2], [3, 1]], images=4, seed=1).rows_of_pass(0).tolist() != passes[0]


@settings(deadline=None, max_examples=60)
@given(LAYOUTS, st.integers(1, 8), st.integers(1, 5), st.randoms(use_true_random=False))
def test_batches_hold_each_row_once_and_over_passes_every_row_equally(
    shards: list[list[int]], size: int, different: int, random: object
) -> None:
    rows = sum(map(sum, shards))
    size = min(size, rows)
    targets = np.arange(rows) % different
    plan = RowPlan(order_of(shards), targets)
    counts = np.zeros(rows, dtype=int)
    for _ in range(4 * rows):
        batch = plan.take(size)
        assert len(set(batch)) == size
        if different >= size and rows >= size * different:
            assert len({int(targets[row]) for row in batch}) >= min(size, different) / 2
        counts[batch] += 1
    waiting = np.bincount(plan.state.waiting, minlength=rows)
    assert (counts + waiting).max() - (counts + waiting).min() <= 1


def test_an_equal_target_comes_first_in_the_next_batch() -> None:
    plan = RowPlan(order_of([[1] * 6], images=1), np.array([0, 0, 1, 2, 3, 4]))
    assert plan.take(2) == [0, 2] and plan.state.waiting == (1,) and plan.put_off == 1
    assert plan.take(2) == [1, 3]


def test_few_different_targets_do_not_starve_it() -> None:
    plan = RowPlan(order_of([[1] * 40]), np.arange(40) % 2)
    seen = [row for _ in range(5) for row in plan.take(8)]
    assert len(seen) == 40 and len(set(seen)) >= 40 - 8


def test_without_targets_batches_are_cut_as_rows_come() -> None:
    order = order_of([[1, 2], [2, 1]])
    plan = RowPlan(order, None)
    assert plan.take(4) + plan.take(2) == order.rows_of_pass(0).tolist()
    assert plan.take(6) == order.rows_of_pass(1).tolist()


def test_a_state_is_all_it_takes_to_go_on() -> None:
    order, targets = order_of([[2, 3], [1, 2], [3, 1]]), np.arange(12) % 5
    plan = RowPlan(order, targets)
    for _ in range(7):
        plan.take(5)
    state = PlanState.from_json(plan.state.to_json())
    assert [RowPlan(order, targets, state).take(5) for _ in range(2)] == [plan.take(5)] * 2


def test_fewer_rows_than_a_batch_is_one_error() -> None:
    with pytest.raises(VirtueError, match="only 2 different samples could be read, batch_size is 3: lower batch_size"):
        RowPlan(order_of([[1, 1]]), None).take(3)


def test_a_partner_is_of_the_same_digest_in_another_image() -> None:
    digests = np.array([5, 5, 7, 5, -1, -1, 8, 8], dtype=np.int64)
    images = np.array([0, 0, 1, 1, 2, 3, 4, 4])
    partners = RowPartners(digests, images)
    assert partners.usable.tolist() == [True, True, False, True, False, False, False, False]
    assert {partners.draw(3, seed) for seed in range(20)} == {0, 1}
    assert {partners.draw(0, 9), partners.draw(1, 4)} == {3}
    assert [partners.draw(3, seed) for seed in range(9)] == [partners.draw(3, seed) for seed in range(9)]


def test_rows_that_are_not_usable_are_never_drawn() -> None:
    usable = np.arange(12) % 3 > 0
    plan = RowPlan(order_of([[2, 3], [1, 2], [3, 1]]), None, usable=usable)
    drawn = [row for _ in range(4) for row in plan.take(4)]
    assert sorted(drawn) == sorted(np.flatnonzero(usable).tolist() * 2)
    again = RowPlan(order_of([[2, 3], [1, 2], [3, 1]]), None, plan.state, usable)
    assert again.take(4) == plan.take(4)
    with pytest.raises(VirtueError, match="only 8 different samples could be read, batch_size is 9"):
        plan.take(9)
