"""People's own pairs, as the shards hold them, to samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtue_pl.data.mmeb import MMEBDataModule
from virtue_pl.data.records import Picture, Row, read_region
from virtue_pl.types import RankingSample, Sample


class PairDataModule(MMEBDataModule):
    """Pairs and rankings of texts, pictures or both (`virtue-pl shards pairs`); a query may mean a region of its picture."""

    @staticmethod
    def to_sample(row: Row, pictures: Sequence[Picture]) -> Sample | RankingSample:
        sample = MMEBDataModule.to_sample(row, pictures)
        if row.fields.get("box") is None:
            return sample
        return replace(sample, region=read_region(row, pictures[row["query"][1]].size))
