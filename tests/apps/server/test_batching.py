"""The queue: rows of several requests are one batch, room is bounded, and what was accepted is computed."""

from __future__ import annotations

import threading

import pytest

from virtue_pl.apps.server.batching import BatchQueue, Job, QueueClosed, QueueFull
from virtue_pl.apps.server.options import Limits
from virtue_pl.types import EmbeddingInput

LIMITS = Limits(queued_rows=8, request_rows=8, batch_rows=4, batch_tokens=100, wait_seconds=0)


class Model:
    """Answers with the texts in capitals, once it may, and notes its batches."""

    def __init__(self):
        self.batches, self.may_run, self.runs = [], threading.Event(), threading.Event()

    def __call__(self, task, items):
        self.runs.set()
        assert self.may_run.wait(30)
        self.batches.append((task, [item.text for item in items]))
        if any(item.text == "bad" for item in items):
            raise ValueError("a bad row")
        return [item.text.upper() for item in items]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def queue(model):
    queue = BatchQueue(model, LIMITS)
    yield queue
    model.may_run.set()
    queue.close(30)


def submit(queue, *texts, task="embed", tokens=1.0):
    queue.reserve(len(texts))
    future = queue.submit(Job(task, [EmbeddingInput(text) for text in texts], tokens))
    future.add_done_callback(lambda _: queue.release(len(texts)))
    return future


def test_what_waits_is_one_batch(queue, model):
    first = submit(queue, "a")
    assert model.runs.wait(30)
    rest = [submit(queue, "b", "c"), submit(queue, "d"), submit(queue, "e", "f"), submit(queue, "g", task="masks")]
    model.may_run.set()
    assert [future.result(30) for future in (first, *rest)] == [["A"], ["B", "C"], ["D"], ["E", "F"], ["G"]]
    assert model.batches == [
        ("embed", ["a"]),
        ("embed", ["b", "c", "d"]),
        ("embed", ["e", "f"]),
        ("masks", ["g"]),
    ]


def test_tokens_bound_a_batch_and_a_large_request_goes_alone(queue, model):
    submit(queue, "a")
    assert model.runs.wait(30)
    rest = [submit(queue, "b", tokens=500), submit(queue, "c", tokens=60), submit(queue, "d", tokens=60)]
    model.may_run.set()
    for future in rest:
        future.result(30)
    assert [texts for _, texts in model.batches] == [["a"], ["b"], ["c"], ["d"]]


def test_a_bad_row_spoils_no_other(queue, model):
    submit(queue, "a")
    assert model.runs.wait(30)
    good, bad, other = submit(queue, "b"), submit(queue, "bad"), submit(queue, "c")
    model.may_run.set()
    assert (good.result(30), other.result(30)) == (["B"], ["C"])
    with pytest.raises(ValueError, match="a bad row"):
        bad.result(30)


def test_a_full_queue_refuses_until_there_is_room(queue, model):
    queue.reserve(8)
    with pytest.raises(QueueFull, match="8 rows are queued, of at most 8"):
        queue.reserve(1)
    queue.release(8)
    queue.reserve(1)
    queue.release(1)


def test_one_that_is_no_longer_wanted_is_not_computed(queue, model):
    submit(queue, "a")
    assert model.runs.wait(30)
    unwanted, wanted = submit(queue, "b"), submit(queue, "c")
    assert unwanted.cancel()
    model.may_run.set()
    assert wanted.result(30) == ["C"] and [texts for _, texts in model.batches] == [["a"], ["c"]]


def test_closing_computes_what_was_accepted_even_what_is_still_being_decoded(queue, model):
    first = submit(queue, "a")
    queue.reserve(1)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while not queue._closed:
        pass
    with pytest.raises(QueueClosed, match="the server stops"):
        queue.reserve(1)
    late = queue.submit(Job("embed", [EmbeddingInput("b")], 1.0))
    late.add_done_callback(lambda _: queue.release(1))
    model.may_run.set()
    closing.join(30)
    assert not closing.is_alive() and (first.result(30), late.result(30)) == (["A"], ["B"])
