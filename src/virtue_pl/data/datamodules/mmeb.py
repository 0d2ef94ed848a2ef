"""The DataModule of MMEB's rows, as shards store them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virtue_pl.data.datamodules.shards import ShardDataModule
from virtue_pl.data.formats.mmeb import PUBLISHED_TOKEN
from virtue_pl.data.formats.scar_queries import NO_PROMPT, read_rankings
from virtue_pl.data.shards.records import RecordImage, Row
from virtue_pl.data.shards.stored_prompts import image_numbers
from virtue_pl.types import IMAGE_TOKEN, DataError, EmbeddingInput, RankingSample, Sample


class MMEBDataModule(ShardDataModule):
    """A dataset of MMEB or MMEB-mini: queries and targets of text, image or both, and no region.

    Texts are MMEB's own, with the instruction inside; only the image token is replaced by the one that every backbone
    reads. Several datasets are trained on together by a `MixedDataModule`.

    Example:
        >>> MMEBDataModule("shards/MMEB_CIRR", test={"test": "shards/MMEB_eval_CIRR"}, batch_size=8).eval_batch_size
        8
    """

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        query = embedding_input(row, row["query"], images)
        if "candidates" not in row.fields:
            target = embedding_input(row, row["target"], images)
            return Sample(
                row.key,
                row.task,
                query,
                target,
                tuple(embedding_input(row, stored, images) for stored in row.items("negatives")),
            )
        candidates = tuple(embedding_input(row, stored, images) for stored in row.items("candidates"))
        return RankingSample(row.key, row.task, query, candidates, read_rankings(row, len(candidates)))


def embedding_input(row: Row, stored: Any, images: Sequence[RecordImage]) -> EmbeddingInput:
    """Return the input of [TEXT, NUMBER OF ITS IMAGE OR NULL]; an input of several images has a list of numbers.

    Raises DataError for anything else, and for more image tokens than images.
    """
    numbers = image_numbers(stored)
    if numbers is None:
        raise DataError(row.key, f"found {stored!r}, expected a text and the number of its image, or null")
    text = stored[0]
    for number in numbers:
        if not 0 <= number < len(images):
            raise DataError(row.key, f"image {number} of {text!r} is not there: the record has {len(images)}")
    found, allowed = len(PUBLISHED_TOKEN.findall(text)), len(numbers)
    if found > allowed:
        raise DataError(row.key, f"{found} image tokens in {text!r}, expected {allowed}, as many as it has images")
    shown = tuple(images[number] for number in numbers)
    pixels, keys = tuple(image.image for image in shown), tuple(image.content_key for image in shown)
    return EmbeddingInput(
        PUBLISHED_TOKEN.sub(IMAGE_TOKEN, text), pixels, NO_PROMPT, keys, tuple(image.features for image in shown)
    )
