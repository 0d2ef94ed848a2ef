"""Truncation of texts that are too long: what they say about an image or a region is never cut, their free text is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, VirtueError

if TYPE_CHECKING:
    from virtue_pl.preprocessing.input_formatters import InputFormatter

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""

REGION_TEXT = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]", re.IGNORECASE)
"""Pattern of a region in words, as formatters and the published data write it."""
MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for an input's own text, to find what a formatter writes around it."""


class FormattedText(str):
    """A formatted text that can tell which of its parts come from the formatter; to all others it is a string.

    Example:
        >>> text = FormattedText("a cat", lambda: [(0, 1)])
        >>> text.split(" "), text.spans()
        (['a', 'cat'], [(0, 1)])
    """

    spans: Callable[[], Sequence[Span]]

    def __new__(cls, text: str, spans: Callable[[], Sequence[Span]]) -> FormattedText:
        found = super().__new__(cls, text)
        found.spans = spans
        return found


def format_text(formatter: InputFormatter, item: EmbeddingInput, delimiters: tuple[str, str]) -> FormattedText:
    """Return the item's text with the model's delimiters around images (`VLMProcessor.image_delimiters`)."""

    def write(item: EmbeddingInput) -> str:
        return formatter.delimit_images(formatter.text(item), delimiters)

    text = write(item)
    return FormattedText(text, lambda: written_around(text, item, write))


def written_around(text: str, item: EmbeddingInput, write: Callable[[EmbeddingInput], str]) -> list[Span]:
    """Return the parts of a formatted text that stand before and after the item's own text.

    That is the whole text where the item's own cannot be found in it.
    """
    marked = write(replace(item, text=MARK + IMAGE_TOKEN * item.text.count(IMAGE_TOKEN) + MARK))
    before, _, rest = marked.partition(MARK)
    _, found, after = rest.rpartition(MARK)
    if not (found and text.startswith(before) and text.endswith(after)):
        return [(0, len(text))]
    return [(0, len(before)), (len(text) - len(after), len(text))]


def protected_spans(text: str, delimiters: tuple[str, str]) -> list[Span]:
    """Return the parts of a text that are never cut, which may overlap.

    They are images with their delimiters, regions in words, and whatever the formatter wrote (`FormattedText`).
    """
    before, after = map(re.escape, delimiters)
    images = re.finditer(f"{before}{re.escape(IMAGE_TOKEN)}{after}", text)
    spans = [match.span() for match in (*images, *REGION_TEXT.finditer(text))]
    return [*spans, *text.spans()] if isinstance(text, FormattedText) else spans


def tokenize_pieces(
    tokenizer: Any, text: str, delimiters: tuple[str, str], max_tokens: int, special_tokens: int = 0
) -> list[list[int]]:
    """Return the ids of each piece of a text between its `IMAGE_TOKEN`s, at most `max_tokens` in all.

    Of a longer text the free part is cut at its end: not `protected_spans`, nor the tokenizer's special tokens.

    Args:
        tokenizer: of transformers.
        text: what the model reads.
        delimiters: the text before and after each image.
        max_tokens: the largest number of ids.
        special_tokens: number of ids that the caller adds to them, which count, too.

    Raises:
        VirtueError: what is never cut has more tokens than `max_tokens`.
    """
    pieces = text.split(IMAGE_TOKEN)
    ids: list[list[int]] = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
    if sum(map(len, ids)) + special_tokens <= max_tokens:
        return ids
    protected = protected_tokens(tokenizer, pieces, protected_spans(text, delimiters))
    needed = sum(map(sum, protected)) + special_tokens
    if max(needed, 1) > max_tokens:
        raise VirtueError(
            f"max_tokens is {max_tokens}, expected at least the {max(needed, 1)} tokens of what is never cut, all but"
            f" the free text, of {text[:60]!r}: set `max_tokens` to more, or describe less in the text"
        )
    remaining = max_tokens - needed
    kept: list[list[int]] = []
    for piece_ids, flags in zip(ids, protected, strict=True):
        free = [number for number, flag in enumerate(flags) if not flag]
        cut = set(free[remaining:])
        remaining -= len(free) - len(cut)
        kept.append([token for number, token in enumerate(piece_ids) if number not in cut])
    return kept


def protected_tokens(tokenizer: Any, pieces: Sequence[str], spans: Sequence[Span]) -> list[list[bool]]:
    """Return for each token of each piece whether it is special or reaches into one of the text's spans."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found, start = [], 0
    for piece in pieces:
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        moved = [(first - start, last - start) for first, last in spans]
        found.append(
            [
                token in special or any(first < span[1] and span[0] < last for span in moved)
                for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            ]
        )
        start += len(piece) + len(IMAGE_TOKEN)
    return found
