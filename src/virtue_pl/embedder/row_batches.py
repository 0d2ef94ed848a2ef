"""Batches of rows of similar length, in which little is padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from virtue_pl.types import EmbeddingInput

CHARACTERS_PER_TOKEN, PIXELS_PER_TOKEN = 4, 28 * 28
"""Rough sizes of a token, by which rows of similar length are batched together; nothing else depends on them."""


def sort_into_batches(
    items: Sequence[EmbeddingInput], size: int, resized_size: Callable[[Tensor], tuple[int, int]]
) -> Iterator[list[int]]:
    """Yield the rows of each batch, of similar length, longest first; rows on the same images follow each other.

    size: rows of a batch. resized_size: the (height, width) at which the language model reads an image.

    Example:
        >>> list(sort_into_batches([EmbeddingInput("a cat"), EmbeddingInput("a black dog")], 1, lambda image: (0, 0)))
        [[1], [0]]
    """
    lengths = [estimate_length(item, resized_size) for item in items]
    longest: dict[tuple[str, ...], float] = {}
    first: dict[tuple[str, ...], int] = {}
    for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
        longest[item.image_keys] = max(length, longest.get(item.image_keys, 0))
        first.setdefault(item.image_keys, row)
    order = sorted(
        range(len(items)),
        key=lambda row: (-longest[items[row].image_keys], first[items[row].image_keys], -lengths[row]),
    )
    yield from (order[start : start + size] for start in range(0, len(order), size))


def estimate_length(item: EmbeddingInput, resized_size: Callable[[Tensor], tuple[int, int]]) -> float:
    """Return roughly the number of tokens of a row."""
    sizes = [resized_size(image) for image in item.images]
    return len(item.text) / CHARACTERS_PER_TOKEN + sum(height * width for height, width in sizes) / PIXELS_PER_TOKEN
