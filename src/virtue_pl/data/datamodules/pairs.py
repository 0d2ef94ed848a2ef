"""The DataModule of own pairs, as shards store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.shards.records import RecordImage, Row, read_region
from virtue_pl.types import RankingSample, Sample


class PairDataModule(MMEBDataModule):
    """Pairs and rankings of texts, images or both (`virtue-pl shards pairs`), with or without a region.

    The region is one of the query's image.

    Example:
        >>> PairDataModule("shards/train", test={"test": "shards/test"}, batch_size=8).batch_size
        8
    """

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        sample = MMEBDataModule.to_sample(row, images)
        if row.fields.get("box") is None:
            return sample
        return replace(sample, region=read_region(row, images[row["query"][1]].size))
