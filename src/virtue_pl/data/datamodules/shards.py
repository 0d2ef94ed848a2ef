"""The DataModule over folders of shards; a dataset adds one method, `to_sample`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from virtue_pl.data.datamodules.base import StreamingDataModule
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import RecordImage, Row
from virtue_pl.data.streaming.image_stream import ImageStream
from virtue_pl.data.streaming.loader import RankingStream, StreamLoader
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions, check_counts
from virtue_pl.data.streaming.pipeline import TrainingSource
from virtue_pl.data.streaming.readable_samples import check_source, find_first_problems, read_first
from virtue_pl.data.streaming.training_stream import TrainingStream
from virtue_pl.features.store import INDEX, FeatureIndex, StoredFeatures
from virtue_pl.types import Collator, RankingSample, Sample, VirtueError


class ShardDataModule(StreamingDataModule, ABC):
    """Streams samples from folders of shards, as `virtue-pl shards` writes them.

    Training is a seeded stream with equally many steps on every rank, no sample twice in a batch. Evaluation takes
    every sample exactly once, all folders in one loader; `RankingSample.task` is "TASK/NAME" by the names given here.

    Args:
        train: folder of training shards, or its URL (any that fsspec knows); None where nothing is trained.
        val: folder, or folders by name, to validate on; one without a name is called "val".
        test: folders by name to test on.
        batch_size: training samples a step and rank.
        eval_batch_size: evaluation samples a batch; default `batch_size`.
        test_rows: of each folder of `test` only its first images, as many as have at most so many rows; default all.
        features: name of the folder, inside each folder of shards, with what is stored of the images by
            configs/overlays/features/store_features.yaml: frozen networks then see only images that are new, such as a
            crop or a mirrored one. With `predict: images`, where it will be.
        predict: what a prediction is of, "pairs" (the training samples of one epoch) or "images" (each of all folders
            once, `eval_batch_size` records a batch; of those in `test` the first shards with `test_rows` rows).
        sampling: how training samples are drawn.
        reader: how records are read.
        cache: copies of shards that a URL names.

    Example:
        >>> from virtue_pl.data.datamodules.scar import SCaRDataModule
        >>> sampling, reader = SamplingOptions(num_negatives=4), ReaderOptions(num_workers=2)
        >>> SCaRDataModule("shards/SCAR_mini", val="shards/SCaR_eval", sampling=sampling, reader=reader).num_negatives
        4
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | dict[str, str] | None = None,
        test: dict[str, str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        test_rows: int | None = None,
        features: str | None = None,
        predict: Literal["pairs", "images"] = "pairs",
        sampling: SamplingOptions = SamplingOptions(),
        reader: ReaderOptions = ReaderOptions(),
        cache: CacheOptions = CacheOptions(),
    ) -> None:
        super().__init__(batch_size, reader)
        check_counts({"eval_batch_size": eval_batch_size, "test_rows": test_rows})
        self.train = train
        self.val = {"val": val} if isinstance(val, str) else dict(val or {})
        self.test = dict(test or {})
        self.eval_batch_size = eval_batch_size or batch_size
        self.test_rows = test_rows
        self.features = features
        self.predict = predict
        self.sampling = sampling
        self.cache = cache

    @property
    def num_negatives(self) -> int:
        """Return the number of hard negatives of a training sample."""
        return self.sampling.num_negatives

    @property
    def steps_per_epoch(self) -> int | None:
        """Return the training steps of an epoch as the options set them; None for as many as go into the rows once."""
        return self.sampling.steps_per_epoch

    @staticmethod
    @abstractmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        """Return the sample of one row, whose record has `images`. Raises DataError for a row that has no meaning."""

    def connect(self, collator: Collator) -> None:
        """Set the model's collator. Raises VirtueError for stored features of another network than the model's."""
        super().connect(collator)
        if self.features is not None and self.predict == "pairs":
            paths = [*([] if self.train is None else [self.train]), *self.val.values(), *self.test.values()]
            for folder in (Path(path) / self.features for path in paths):
                if (folder / INDEX).is_file():
                    FeatureIndex.read(folder).check(folder, collator.fingerprints)

    @cached_property
    def train_folder(self) -> ShardFolder:
        """Return the folder of training shards. Raises VirtueError where it is not set, or does not fit the options."""
        return self.open_train()

    def open_train(self) -> ShardFolder:
        """Return the folder of training shards, as the options limit it; see `train_folder`."""
        if self.train is None:
            raise VirtueError("train is not set: give the folder of training shards")
        folder = ShardFolder.open(self.train, "train", self.cache)
        if folder.manifest.kind != "pairs":
            raise VirtueError(f"train: {self.train} holds {folder.manifest.kind}, expected pairs (training shards)")
        if self.sampling.negatives_required and folder.manifest.negatives[0] < self.num_negatives:
            raise VirtueError(
                f"num_negatives is {self.num_negatives}, but rows of {self.train} have as few as"
                f" {folder.manifest.negatives[0]}"
            )
        return self._read(folder, None).limit_rows(self.sampling.train_rows)

    @cached_property
    def val_folders(self) -> dict[str, ShardFolder]:
        """Return the folders of validation shards by name. Raises VirtueError for one that holds no rankings."""
        folders = _ranking_folders(self.val, "val", self.cache)
        return {name: self._read(folder, None) for name, folder in folders.items()}

    @cached_property
    def test_folders(self) -> dict[str, ShardFolder]:
        """Return the folders of test shards by name. Raises VirtueError for one that holds no rankings."""
        folders = _ranking_folders(self.test, "test", self.cache)
        return {name: self._read(folder, self.test_rows) for name, folder in folders.items()}

    @property
    def steps(self) -> int:
        """Return the training steps of an epoch, on every rank.

        Raises VirtueError where the rows are fewer than a batch.
        """
        rows, steps = self.train_folder.manifest.rows, self.sampling.steps_per_epoch
        needed = self.batch_size * (self.world_size if steps is None else 1)
        if rows < needed:
            few = f"{rows} rows in {self.train} are fewer than one batch of {needed} (over {self.world_size} ranks)"
            raise VirtueError(f"train: {few}: lower batch_size (--shared.batch_size)")
        return rows // needed if steps is None else steps

    def training_source(self, seed: int) -> TrainingSource:
        """Return the training samples of this dataset, to be drawn with `seed`."""
        return TrainingSource(self.train_folder, self.to_sample, self.sampling, seed, self.reader.pixel_limit)

    def training_rows(self) -> dict[str, str]:
        """Return the training rows and the order in which they come, in words; none where nothing is trained."""
        return {} if self.train is None else {"": self.training_source(self.reader.seed).describe_rows()}

    def find_first_problems(self, rows: int) -> tuple[int, dict[str, str]]:
        """Return how many of the first training rows were read, and the problems of those that cannot be used."""
        return find_first_problems(check_source(self.training_source(0), self._require_collator()), rows)

    def first_samples(self, rows: int) -> list[Sample]:
        """Return up to `rows` first training samples, of shards on this machine, with their first hard negatives."""
        source = check_source(self.training_source(0), self._require_collator())
        found = read_first(source.folder, source.to_sample, source.max_pixels, rows)
        samples = [sample for _, sample in found if isinstance(sample, Sample)]
        return [replace(sample, negatives=sample.negatives[: self.num_negatives]) for sample in samples]

    def first_rankings(self, rows: int) -> list[RankingSample]:
        """Return up to `rows` first validation samples of each folder, of shards on this machine."""
        folders = self.val_folders.values()
        found = [read_first(folder, self.to_sample, self.reader.pixel_limit, rows) for folder in folders]
        return [sample for some in found for _, sample in some if isinstance(sample, RankingSample)]

    def train_dataloader(self) -> StreamLoader:
        """Return the training stream."""
        collator = self._require_collator()
        source = check_source(self.training_source(self.reader.seed), collator)
        options: dict[str, Any] = {"batch_size": self.batch_size, "steps": self.steps, "reader": self.reader_info()}
        return self._loader(TrainingStream(source, collator.collate_train, **options))

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """Return all validation sets; an empty list where there are none."""
        return self._ranking_loader(self.val_folders) if self.val else []

    def test_dataloader(self) -> StreamLoader:
        """Return all test sets. Raises VirtueError where there are none."""
        if not self.test:
            raise VirtueError("test is not set: give the folders of evaluation shards by name")
        return self._ranking_loader(self.test_folders, self.test_rows)

    def predict_dataloader(self) -> StreamLoader:
        """Return one epoch of training samples, or every image, as `predict` says ("pairs", "images")."""
        if self.predict == "pairs":
            return self.train_dataloader()
        collator = self._require_collator()
        limits = {f"test/{name}": self.test_rows for name in self.test}
        folders = {
            folder.path.resolve(): (folder, limits.get(split)) for split, folder in reversed(self.folders().items())
        }
        shards = [
            (folder, shard) for folder, rows in reversed(folders.values()) for shard in folder.shards_within(rows)
        ]
        stream = ImageStream(
            shards,
            collator.collate_images,
            batch_size=self.eval_batch_size,
            features=self.features,
            fingerprints=collator.fingerprints,
            precision=self.precision,
            max_pixels=self.reader.pixel_limit,
            reader=self.reader_info(),
        )
        return self._loader(stream)

    def fingerprint(self) -> str:
        """Return a fingerprint of all shards, which changes with any of their bytes."""
        folders = self.folders()
        return hashlib.sha256(
            "".join(f"{split}={folder.manifest.fingerprint}\n" for split, folder in folders.items()).encode()
        ).hexdigest()

    def num_queries(self) -> dict[str, int]:
        """Return the number of queries that a test ranks, by task ("TASK/NAME"); bad samples among them are skipped."""
        return {
            f"{folder.manifest.task}/{name}": sum(
                shard.rows for shard in folder.limit_rows(self.test_rows).manifest.shards
            )
            for name, folder in self.test_folders.items()
        }

    def left_out(self) -> dict[str, dict[str, int]]:
        """Return the number of a test's queries that shards do not hold or `test_rows` excludes, by task and reason."""
        ranked = self.num_queries()
        found = {}
        for name, folder in self.test_folders.items():
            task = f"{folder.manifest.task}/{name}"
            beyond = folder.manifest.rows - ranked[task]
            found[task] = dict(folder.manifest.skipped) | ({"beyond test_rows": beyond} if beyond else {})
        return {task: counts for task, counts in found.items() if counts}

    def describe(self) -> list[dict[str, Any]]:
        """Return what would be read, one entry for each folder.

        An entry has split, path, task, licence, counts, samples and steps of an epoch, and fingerprint.
        """
        return [
            {"split": split, "path": str(folder.path), **self._describe(split, folder)}
            for split, folder in self.folders().items()
        ]

    def _read(self, folder: ShardFolder, rows: int | None) -> ShardFolder:
        """Return the folder with the size of its images, and their stored features (`_with_features`)."""
        square_size = self.reader.resize_to_square
        if square_size is not None and self.features is not None:
            found = f"resize_to_square is {square_size}, but features are of images at their own size"
            raise VirtueError(f"{found}: leave resize_to_square or features out")
        return replace(self._with_features(folder, rows), resize_to_square=square_size)

    def _with_features(self, folder: ShardFolder, rows: int | None) -> ShardFolder:
        """Return the folder with its stored features, if they are to be read.

        They must cover the shards with its first `rows` rows.
        """
        if self.features is None or self.predict == "images" or self._collator is None:
            return folder
        path, manifest = folder.path / self.features, folder.manifest
        index = FeatureIndex.read(path)
        streams = index.check(path, self._collator.fingerprints, self.precision)
        index.check_shards(path, manifest.fingerprint, [shard.name for shard in folder.shards_within(rows)])
        return replace(folder, features=StoredFeatures(path, streams, index.provenance))

    def folders(self) -> dict[str, ShardFolder]:
        """Return every folder that is set by its split: "train", "val/NAME", "test/NAME"."""
        train = {} if self.train is None else {"train": self.train_folder}
        return (
            train
            | {f"val/{n}": f for n, f in self.val_folders.items()}
            | {f"test/{n}": f for n, f in self.test_folders.items()}
        )

    def _describe(self, split: str, folder: ShardFolder) -> dict[str, Any]:
        if split == "train":
            return describe_folder(folder, self.steps * self.batch_size * self.world_size, self.steps)
        rows = folder.manifest.rows
        return describe_folder(folder, rows, -(-rows // (self.eval_batch_size * self.world_size)))

    def _ranking_loader(self, folders: Mapping[str, ShardFolder], rows: int | None = None) -> StreamLoader:
        stream = RankingStream(
            folders,
            self.to_sample,
            self._require_collator().collate_eval,
            batch_size=self.eval_batch_size,
            rows=rows,
            max_pixels=self.reader.pixel_limit,
            reader=self.reader_info(),
        )
        return self._loader(stream)


def describe_folder(folder: ShardFolder, samples: int, steps: int) -> dict[str, Any]:
    """Return an entry on a folder, with the samples and steps that an epoch takes from it."""
    manifest = folder.manifest
    return {
        "task": manifest.task,
        "licence": manifest.licence,
        "shards": len(manifest.shards),
        "images": manifest.images,
        "rows": manifest.rows,
        "samples_per_epoch": samples,
        "steps": steps,
        "skipped_when_written": sum(manifest.skipped.values()),
        "fingerprint": manifest.fingerprint[:12],
    }


def _ranking_folders(paths: Mapping[str, str], option: str, cache: CacheOptions) -> dict[str, ShardFolder]:
    folders = {name: ShardFolder.open(path, f"{option}.{name}", cache) for name, path in paths.items()}
    for name, folder in folders.items():
        if folder.manifest.kind != "rankings":
            raise VirtueError(
                f"{option}.{name}: {folder.path} holds {folder.manifest.kind}, expected rankings (evaluation shards)"
            )
        if not folder.manifest.rows:
            raise VirtueError(f"{option}.{name}: {folder.path} holds no rows")
    return folders
