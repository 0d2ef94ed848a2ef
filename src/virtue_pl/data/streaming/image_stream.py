"""Images alone, shard by shard, for what is computed once of each image and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from virtue_pl.data.shards.manifest import Shard, ShardFolder
from virtue_pl.data.shards.records import Record, RecordImage
from virtue_pl.data.streaming.loader import BatchStream
from virtue_pl.data.streaming.pipeline import ReaderInfo
from virtue_pl.data.streaming.readable_samples import collate_readable
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.features.store import FeatureProvenance, features_path, is_outdated, is_stored
from virtue_pl.types import DataError, ImageBatch, ShardImageBatch


class ImageStream(BatchStream):
    """Every distinct image of every shard once, over all ranks and workers, each of which reads whole shards.

    A batch holds the images of up to `batch_size` records of one shard. Raises VirtueError for stored features that
    were made from other data or by another network.

    Args:
        shards: the shards to read, in order.
        collate: `Collator.collate_images`.
        batch_size: records of a batch.
        features: name of the folder of stored features in each folder of shards: a shard with stored features is passed
            over; None reads all.
        fingerprints: of what the features depend on, by stream.
        precision: the trainer's, in which they are computed; None accepts any.
        max_pixels: larger images count as bad.
        reader: the rank that is read for, and its limits of bad samples.

    Example:
        >>> folder = ShardFolder.open("shards/SCAR_mini", "train")  # doctest: +SKIP
        >>> shards = [(folder, shard) for shard in folder.manifest.shards]  # doctest: +SKIP
        >>> stream = ImageStream(shards, model.collator.collate_images, batch_size=8, features=None, fingerprints={},
        ...     max_pixels=10_000_000, reader=ReaderInfo())  # doctest: +SKIP
    """

    def __init__(
        self,
        shards: Sequence[tuple[ShardFolder, Shard]],
        collate: Callable[[Sequence[UInt8[Tensor, "3 height width"]]], ImageBatch],
        *,
        batch_size: int,
        features: str | None,
        fingerprints: Mapping[str, str],
        max_pixels: int,
        reader: ReaderInfo,
        precision: str | None = None,
    ) -> None:
        super().__init__(reader)
        self.collate = collate
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.shards = [
            (folder, shard, features is not None and self.stored(folder, shard, features, fingerprints, precision))
            for folder, shard in shards[reader.rank :: reader.world_size]
        ]
        if features is not None:
            self.report_outdated(features)

    def report_outdated(self, features: str) -> None:
        """Say how many shards have features of another format, if any."""
        missing = [(folder.path / features, shard.name) for folder, shard, stored in self.shards if not stored]
        outdated = sum(is_outdated(features_path(*each)) for each in missing)
        if outdated:
            rank_zero_info(f"features of {outdated} shards are stored in an earlier format: they are computed again")

    def stored(
        self,
        folder: ShardFolder,
        shard: Shard,
        features: str,
        fingerprints: Mapping[str, str],
        precision: str | None,
    ) -> bool:
        """Return whether an earlier run stored the shard's features."""
        return is_stored(
            features_path(folder.path / features, shard.name),
            FeatureProvenance(None, fingerprints, folder.manifest.fingerprint, precision),
        )

    @property
    def num_batches(self) -> int:
        return sum(self.batches_of(shard, stored) for _, shard, stored in self.shards)

    def batches_of(self, shard: Shard, stored: bool) -> int:
        """Return the number of batches of one shard; 1, which is empty, for one with stored features."""
        return 1 if stored else max(1, -(-shard.images // self.batch_size))

    def batches(self, reader: ReaderInfo, epoch: int, log: SkipLog) -> Iterator[Any]:
        for folder, shard, stored in self.shards[reader.worker :: reader.num_workers]:
            records = iter(()) if stored else read_shards([{"url": str(folder.path / shard.name)}], folder, log)
            seen: set[str] = set()
            count = self.batches_of(shard, stored)
            for number in range(count):
                images = list(self.distinct(islice(records, self.batch_size), seen, log))
                images, prepared = self.prepare(images, log)
                keys = tuple(image.content_key for image in images)
                yield ShardImageBatch(
                    str(folder.path), folder.manifest.fingerprint, shard.name, keys, prepared, number == count - 1
                )

    def prepare(self, images: list[RecordImage], log: SkipLog) -> tuple[list[RecordImage], ImageBatch]:
        """Return the images that the model can read, and their batch; the others are named and skipped."""
        found, batch = collate_readable(images, self.collate_images, image_name, log)
        return found, self.collate([]) if batch is None else batch

    def collate_images(self, images: Sequence[RecordImage]) -> ImageBatch:
        """Return the images as the model reads them."""
        return self.collate([image.image for image in images])

    def distinct(self, records: Iterable[Record], seen: set[str], log: SkipLog) -> Iterator[RecordImage]:
        """Yield the records' images that are not in `seen`, and add them to it; bad ones are named and skipped."""
        for image in chain.from_iterable(record.images(self.max_pixels) for record in records):
            if image.content_key in seen:
                continue
            seen.add(image.content_key)
            try:
                image.image  # noqa: B018  # decoded here, where a bad one can be skipped
            except DataError as error:
                log.skip(error)
            else:
                log.reset_consecutive()
                yield image


def image_name(image: RecordImage) -> str:
    """Return the name by which an image is found again: its record's, and its content key."""
    return f"{image.record}, image {image.content_key}"
