"""Rows side by side: the same entries from lists and from any other iterable, and no row lost or asked for early."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from virtue_pl.preprocessing.embedding_rows import Columns, build_rows, decode_rows, is_list, is_stream
from virtue_pl.types import VirtueError, VisualPrompt

STREAMS: dict[str, Callable[[list[Any]], Any]] = {
    "generator": lambda values: (value for value in values),
    "iterator": iter,
    "map": lambda values: map(lambda value: value, values),
    "deque": deque,
    "values": lambda values: dict(enumerate(values)).values(),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("columns", [("texts",), ("images",), ("texts", "images"), ("texts", "images", "prompts")])
def test_any_iterable_gives_the_rows_of_a_list(make: Callable[[list[Any]], Any], columns: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"texts": "abcdefg", "images": "image", "prompts": VisualPrompt()}
    lists = {name: [f"{name} {row}" for row in range(7)] for name in columns}
    (whole,) = Columns(**given | lists).windows(3)
    streamed = Columns(**given | lists | {columns[0]: make(lists[columns[0]])})
    assert streamed.streamed
    windows = list(streamed.windows(3))
    assert [row for window in windows for row in window] == whole and list(map(len, windows)) == [3, 3, 1]


SINGLE = [
    *("text", b"bytes", Path("a.jpg"), Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)),
    *(VisualPrompt(), None, {"a": 1}, {"a"}),
]


@pytest.mark.parametrize("value", SINGLE, ids=lambda value: type(value).__name__)
def test_one_value_is_no_column(value: Any) -> None:
    assert not is_stream(value) and not is_list(value)
    assert list(Columns("text", value, None).windows(1)) == [[("text", value, None)]]


def test_no_row_is_asked_for_early() -> None:
    asked: list[int] = []

    def rows() -> Iterator[str]:
        for number in range(10):
            asked.append(number)
            yield f"text {number}"

    windows = Columns(rows(), None, None).windows(4)
    assert asked == []
    for count in (4, 8, 10):
        next(windows)
        assert len(asked) == count
    assert next(windows, None) is None


@pytest.mark.parametrize("shorter", ["texts", "images", "prompts"])
@pytest.mark.parametrize("lists", [(), ("texts",), ("images",), ("prompts",)])
def test_columns_of_different_lengths_lose_no_row_in_silence(shorter: str, lists: tuple[str, ...]) -> None:
    given: dict[str, Any] = {name: range(2 if name == shorter else 3) for name in ("texts", "images", "prompts")}
    columns = Columns(**{name: (list if name in lists else iter)(value) for name, value in given.items()})
    longer = ", ".join(name for name in given if name != shorter)
    with pytest.raises(
        VirtueError, match=f"^encode was given 2 {shorter}, and more {longer}, expected as many of each"
    ):
        list(columns.windows(10))


def test_rows_share_their_images_and_are_named(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    rows = build_rows([("a", path, None), ("b", str(path), None), ("c", [pixels, path], None)], start=5)
    sources = {source for row in rows for source in row.images}
    assert {source.name for source in sources} == {"row 5", "row 7, image 0"}
    items = decode_rows([("a", path, None), ("c", [pixels, path], None)])
    assert items[0].images[0] is items[1].images[0] is items[1].images[1]
    with pytest.raises(VirtueError, match="row 5 is empty"):
        build_rows([("", None, None)], start=5)
