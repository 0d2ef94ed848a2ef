"""The DataModule of pairs of regions: a region as the query, and a region of the same object in another image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np

from virtue_pl.data.datamodules.shards import ShardDataModule
from virtue_pl.data.formats.scar_queries import NO_PROMPT
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.shards.category_index import read_categories
from virtue_pl.data.shards.records import RecordImage, Row, read_region
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.data.streaming.pipeline import TrainingSource
from virtue_pl.data.streaming.row_plan import RowOrder, RowPartners, RowPlan
from virtue_pl.types import DataError, EmbeddingInput, Sample, VirtueError, VisualPrompt

INSTRUCTION = "Find the same object."
"""Text of a query that asks for regions of the object that it points at."""


class RegionPairDataModule(ShardDataModule):
    """Trains a region's embedding to be near to that of the same object's region in other images.

    It reads SCaR's training shards as they are: a row whose region has a name (`category`) is a query, its image with a
    region and the instruction; its target is a region of that name in another image, drawn anew each time, with its box
    as the prompt and no text, as an index of regions has its documents. Rows without a name, or whose name is in no
    other image, are not trained on (`num_alone`). No name is twice in a batch of one rank, and regions of one name are
    no negatives of each other. It is one part of a mixture, or trains alone; it ranks nothing.

    Args:
        train: folder of SCaR's training shards, or its URL.
        instruction: the query's text.
        others: see `ShardDataModule`. Hard negatives are not drawn.

    Example:
        >>> RegionPairDataModule("shards/SCAR_mini", batch_size=16).instruction
        'Find the same object.'
    """

    def __init__(
        self,
        train: str,
        instruction: str = INSTRUCTION,
        batch_size: int = 32,
        features: str | None = None,
        predict: Literal["pairs", "images"] = "pairs",
        sampling: SamplingOptions = SamplingOptions(),
        reader: ReaderOptions = ReaderOptions(),
        cache: CacheOptions = CacheOptions(),
    ) -> None:
        if sampling.num_negatives:
            raise VirtueError(
                f"num_negatives is {sampling.num_negatives}, but pairs of regions have no hard negatives: set"
                " sampling.num_negatives to 0"
            )
        super().__init__(
            train,
            batch_size=batch_size,
            features=features,
            predict=predict,
            sampling=sampling,
            reader=reader,
            cache=cache,
        )
        self.instruction = instruction

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample:
        """Return a row's region as a query with the usual instruction and, until it is joined, as its own target."""
        return region_sample(INSTRUCTION, row, images)

    @cached_property
    def partners(self) -> RowPartners:
        """The rows with regions of one name. Raises VirtueError where no name is in two images."""
        folder = self.train_folder
        counts = [count for shard in folder.manifest.shards for count in shard.rows_per_image]
        found = RowPartners(read_categories(folder), np.repeat(np.arange(len(counts)), counts))
        if not found.usable.any():
            raise VirtueError(
                f"train: {self.train} has no region whose name (`category`) is in two images, expected SCaR's rows with"
                " the column category: leave this part out"
            )
        return found

    @property
    def num_alone(self) -> int:
        """The number of rows that are not trained on: without a name, or with one that is in no other image."""
        return int((~self.partners.usable).sum())

    def training_source(self, seed: int) -> TrainingSource:
        """Return the pairs of regions, to be drawn with `seed`."""
        plain = super().training_source(seed)
        values = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return RegionPairSource(
            **{**values, "to_sample": partial(region_sample, self.instruction)}, partners=self.partners
        )


@dataclass(frozen=True)
class RegionPairSource(TrainingSource):
    """Pairs of regions of one name in two images, and how they are drawn.

    Example:
        >>> source = data.training_source(seed=0)  # doctest: +SKIP
        >>> source.partner(row=7, seed=1) != 7  # doctest: +SKIP
        True
    """

    partners: RowPartners

    def partner(self, row: int, seed: int) -> int:
        """Return a row with a region of the same name in another image."""
        return self.partners.draw(row, seed)

    def join(self, sample: Sample, partner: Sample) -> Sample:
        """Return the sample with its partner's region as its target."""
        return replace(sample, target=partner.target)

    def describe_rows(self) -> str:
        """Return what `TrainingSource.describe_rows` does, and how many of the rows have a partner."""
        return f"{super().describe_rows()}, {self.partners.usable.sum()} with a region of the same name elsewhere"

    def plan(self) -> RowPlan:
        """Return the plan of which rows come when; regions of one name come in different batches."""
        order = RowOrder(self.folder, self.sampling, self.seed)
        digests = self.partners.digests if self.sampling.distinct else None
        return RowPlan(order, digests, usable=self.partners.usable)


def region_sample(instruction: str, row: Row, images: Sequence[RecordImage]) -> Sample:
    """Return a row's region as a query with an instruction, labelled by its name, and as its own target.

    Raises DataError for a row without an image or a possible region.
    """
    if not images:
        raise DataError(row.key, "it has no image, expected one")
    image = images[0]
    region = read_region(row, image.size)
    query = EmbeddingInput(instruction, (image.image,), NO_PROMPT, (image.content_key,), (image.features,))
    target = replace(query, text="", prompt=VisualPrompt(boxes=region.box[None]))
    return Sample(row.key, row.task, query, target, (), region, label=str(row.fields.get("category") or ""))
