"""The DataModule of SCaR's rows (segmentation-and-scene caption retrieval), as shards store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtue_pl.data.datamodules.shards import ShardDataModule
from virtue_pl.data.formats.scar_queries import NO_PROMPT, caption, instruction, published_query, read_rankings
from virtue_pl.data.shards.records import RecordImage, Row, is_stored_number, read_region
from virtue_pl.types import DataError, EmbeddingInput, RankingSample, Sample


class SCaRDataModule(ShardDataModule):
    """SCaR and SCaR-mini: an image and a region of it, one right caption and wrong ones.

    The query holds the instruction and the image; the model's collator adds the region, as text, drawn, or as a prompt.

    Example:
        >>> SCaRDataModule("shards/SCAR_mini", val="shards/SCaR_eval_mini_val").val
        {'val': 'shards/SCaR_eval_mini_val'}
    """

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        if not images:
            raise DataError(row.key, "it has no image, expected one")
        image = images[0]
        region = read_region(row, image.size)
        query = EmbeddingInput(
            instruction(row.text("query")), (image.image,), NO_PROMPT, (image.content_key,), (image.features,)
        )
        if "candidates" not in row.fields:
            return Sample(
                row.key,
                row.task,
                query,
                caption(row.text("target")),
                tuple(map(caption, row.texts("negatives"))),
                region,
            )
        candidates = tuple(map(caption, row.texts("candidates")))
        return RankingSample(row.key, row.task, query, candidates, read_rankings(row, len(candidates)), region)


class PublishedSCaRDataModule(SCaRDataModule):
    """SCaR with the box as text in every query, letter by letter as the published implementation writes it.

    For `PublishedFormatter(prompt_text=False)`, which adds no region text of its own, with the prompt mode "box" alone.

    Example:
        >>> PublishedSCaRDataModule(test={"RefCOCO+": "shards/SCaR_eval_RefCOCO_plus"}).val
        {}
    """

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        sample = SCaRDataModule.to_sample(row, images)
        box = row.published_box
        if not isinstance(box, list) or not all(map(is_stored_number, box)):
            raise DataError(row.key, f"published_box {box!r}, expected four numbers [x1, y1, x2, y2] in pixels")
        text = published_query(row.text("query"), box, ranked="candidates" in row.fields)
        return replace(sample, query=replace(sample.query, text=text))
