"""The bar of an embedding of many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


def track_progress(batches: Iterable[Batch], progress: bool, total: int | None = None) -> Iterator[Batch]:
    """Yield the batches, with a bar on stderr where `progress` is set. total: their number, of a list its length."""
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, "embedding", total, console=Console(stderr=True), disable=not progress)
