"""SCaR (segmentation-and-scene caption retrieval), as the shards hold it, to samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from virtue_pl.data.records import Picture, Row, read_region
from virtue_pl.data.shard_module import ShardDataModule
from virtue_pl.types import IMAGE_TOKEN, DataError, EmbeddingInput, RankingSample, Sample, VisualPrompt

_IMAGE_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>\s*")
_PUBLISHED_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>")
_BOX_STRING = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]")

NO_PROMPT = VisualPrompt()
"""One for all: making it anew for each of a sample's captions takes longer than decoding its picture."""


class SCaRDataModule(ShardDataModule):
    """SCaR and SCaR-mini: a picture and a region of it, one right caption and wrong ones.

    The query holds the instruction and the picture; how the region is pointed at is chosen by the model's preprocess.
    """

    @staticmethod
    def to_sample(row: Row, pictures: Sequence[Picture]) -> Sample | RankingSample:
        if not pictures:
            raise DataError(row.key, "it has no picture, expected one")
        picture = pictures[0]
        region = read_region(row, picture.size)
        query = EmbeddingInput(instruction(row.text("query")), (picture.image,), NO_PROMPT, (picture.content_key,), (picture.features,))
        if "candidates" not in row.fields:
            return Sample(row.key, row.task, query, caption(row.text("target")), tuple(map(caption, row.texts("negatives"))), region)
        candidates = tuple(map(caption, row.texts("candidates")))
        return RankingSample(row.key, row.task, query, candidates, read_rankings(row, len(candidates)), region)


class PublishedSCaRDataModule(SCaRDataModule):
    """SCaR with the box as text in every query, letter by letter as the published implementation writes it.

    For `ReferenceRecipe(prompt_text=False)`, which adds no words of its own, with the prompt mode "box" alone.
    """

    @staticmethod
    def to_sample(row: Row, pictures: Sequence[Picture]) -> Sample | RankingSample:
        sample = SCaRDataModule.to_sample(row, pictures)
        text = published_query(row.text("query"), row["box"], ranked="candidates" in row.fields)
        return replace(sample, query=replace(sample.query, text=text))


def published_query(query: str, box: Sequence[float], ranked: bool) -> str:
    """The query with its box, xyxy in pixels, as Python prints it.

    An evaluation query has spaces behind the image token, of which the recipe adds the first (`space_after_picture`).
    Source: tests/golden/parsers.json.
    """
    said = _PUBLISHED_TOKEN.sub("", _BOX_STRING.sub("", query))
    if ranked:
        said = f"  {said}".replace(" \n", "\n")[1:]
    return f"{IMAGE_TOKEN}{said}\nReferring object bbox: {list(box)}"


def caption(text: str) -> EmbeddingInput:
    return EmbeddingInput(text, prompt=NO_PROMPT)


def instruction(query: str) -> str:
    """The query's text without image token and without the region as text; recipes add both as they need them."""
    return _BOX_STRING.sub("", _IMAGE_TOKEN.sub("", query)).strip()


def read_rankings(row: Row, num_candidates: int) -> dict[str, tuple[int, ...]]:
    """The row's rankings, each a tuple of candidate indices, the right one first. Raises DataError for anything else."""
    rankings = row["rankings"]
    try:
        checked = {name: tuple(int(index) for index in indices) for name, indices in rankings.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(row.key, f"field 'rankings' is {rankings!r}, expected lists of candidate indices by name") from error
    if not all(len(indices) > 1 and all(0 <= index < num_candidates for index in indices) for indices in checked.values()):
        raise DataError(row.key, f"rankings {checked}, expected two indices or more, below {num_candidates} (the number of candidates)")
    return checked
