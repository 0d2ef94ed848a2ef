"""The DataModule over folders of shards; a dataset adds one method, `to_sample`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from virtue_pl.data.loader import RankingStream, StreamLoader, TrainingStream
from virtue_pl.data.picture_stream import PictureStream
from virtue_pl.data.records import Picture, Row
from virtue_pl.data.remote import CACHE
from virtue_pl.data.shards import ShardFolder
from virtue_pl.data.streaming_module import StreamingDataModule, check_counts
from virtue_pl.feature_store import INDEX, FeatureIndex, StoredFeatures
from virtue_pl.images import MAX_PIXELS
from virtue_pl.types import Preprocess, RankingSample, Sample, VirtueError


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
        test_rows: of each folder of `test` only its first pictures, as many as have at most so many rows; default all.
        train_rows: of `train` only its first pictures, as many as have at most so many rows; default all.
        num_workers: data workers a rank; 0 reads in the training process.
        shuffle_buffer: pictures, still compressed, that each worker shuffles among.
        sample_buffer: samples, with decoded pictures, that each worker shuffles among; 1 keeps the rows
            of a picture in one batch, where it is encoded once and they are each other's negatives.
        seed: of the training stream.
        num_negatives: hard negatives of a sample, drawn anew each time it is seen.
        steps_per_epoch: default as many as go into the rows once.
        max_bad_samples: how many different bad samples each worker skips before the run stops.
        max_consecutive_bad: the same for bad samples in a row.
        max_pixels: larger pictures count as bad.
        squash: every picture is stretched to a square of so many pixels a side, as the published evaluation does (1344), before anything
            else sees it; default none, the picture's own size. How many pixels the vision tower reads is the backbone's to say.
        cache: folder for copies of shards that a URL names.
        cache_gb: how many gigabytes (10^9 bytes) of such copies are kept, over all that share the folder: the least recently read make room,
            what is being read stays; default all.
        features: name of the folder, inside each folder of shards, with what is stored of the pictures by
            configs/overlays/features/store_features.yaml: frozen networks then see only pictures that are new, such as a crop or a
            mirrored one. With `predict: pictures`, where it will be.
        predict: what a prediction is of, "pairs" (the training samples of one epoch) or "pictures" (each of all folders once,
            `eval_batch_size` records a batch; of those in `test` the first shards with `test_rows` rows).
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | dict[str, str] | None = None,
        test: dict[str, str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        test_rows: int | None = None,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        sample_buffer: int = 256,
        seed: int = 0,
        num_negatives: int = 0,
        steps_per_epoch: int | None = None,
        max_bad_samples: int = 100,
        max_consecutive_bad: int = 20,
        max_pixels: int = MAX_PIXELS,
        features: str | None = None,
        predict: Literal["pairs", "pictures"] = "pairs",
        train_rows: int | None = None,
        squash: int | None = None,
        cache: str = CACHE,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, max_bad_samples, max_consecutive_bad)
        check_counts({"batch_size": batch_size, "eval_batch_size": eval_batch_size, "test_rows": test_rows, "steps_per_epoch": steps_per_epoch})
        check_counts({"shuffle_buffer": shuffle_buffer, "sample_buffer": sample_buffer, "train_rows": train_rows, "squash": squash})
        self.train = train
        self.val = {"val": val} if isinstance(val, str) else dict(val or {})
        self.test = dict(test or {})
        self.eval_batch_size = eval_batch_size or batch_size
        self.test_rows = test_rows
        self.shuffle_buffer = shuffle_buffer
        self.sample_buffer = sample_buffer
        self.num_negatives = num_negatives
        self.steps_per_epoch = steps_per_epoch
        self.max_pixels = max_pixels
        self.features = features
        self.predict = predict
        self.train_rows = train_rows
        self.squash = squash
        self.cache = cache
        self.cache_gb = cache_gb

    @staticmethod
    @abstractmethod
    def to_sample(row: Row, pictures: Sequence[Picture]) -> Sample | RankingSample:
        """What one row means in this dataset, beside its record's pictures. Raises DataError for a row that means nothing."""

    def connect(self, preprocess: Preprocess) -> None:
        """As any. Raises VirtueError for stored features that another network than the model's made."""
        super().connect(preprocess)
        if self.features is not None and self.predict == "pairs":
            paths = [*([] if self.train is None else [self.train]), *self.val.values(), *self.test.values()]
            for folder in (Path(path) / self.features for path in paths):
                if (folder / INDEX).is_file():
                    FeatureIndex.read(folder).check(folder, preprocess.fingerprints)

    @cached_property
    def train_folder(self) -> ShardFolder:
        if self.train is None:
            raise VirtueError("train is not set: give the folder of training shards")
        folder = ShardFolder.open(self.train, "train", self.cache, self.cache_gb)
        if folder.manifest.kind != "pairs":
            raise VirtueError(f"train: {self.train} holds {folder.manifest.kind}, expected pairs (training shards)")
        if folder.manifest.negatives[0] < self.num_negatives:
            raise VirtueError(f"num_negatives is {self.num_negatives}, but rows of {self.train} have as few as {folder.manifest.negatives[0]}")
        return self._read(folder, None).first(self.train_rows)

    @cached_property
    def val_folders(self) -> dict[str, ShardFolder]:
        return {name: self._read(folder, None) for name, folder in _ranking_folders(self.val, "val", self.cache, self.cache_gb).items()}

    @cached_property
    def test_folders(self) -> dict[str, ShardFolder]:
        return {name: self._read(folder, self.test_rows) for name, folder in _ranking_folders(self.test, "test", self.cache, self.cache_gb).items()}

    @property
    def steps(self) -> int:
        """Training steps of an epoch, on every rank. Raises VirtueError where the rows make no batch."""
        rows = self.train_folder.manifest.rows
        needed = self.batch_size * (self.world if self.steps_per_epoch is None else 1)
        if rows < needed:
            raise VirtueError(f"train: {rows} rows in {self.train} are fewer than one batch of {needed} (over {self.world} ranks): lower batch_size")
        return rows // needed if self.steps_per_epoch is None else self.steps_per_epoch

    def training_options(self) -> dict[str, int]:
        """What `training_samples` must know beside the place and the seed."""
        return {name: getattr(self, name) for name in ("shuffle_buffer", "sample_buffer", "num_negatives", "max_pixels")}

    def train_dataloader(self) -> StreamLoader:
        stream = TrainingStream(
            self.train_folder,
            self.to_sample,
            self._connected().train,
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.seed,
            options=self.training_options(),
            **self._place_and_limits(),
        )
        return self._loader(stream)

    def val_dataloader(self) -> StreamLoader | list[Any]:
        return self._ranking_loader(self.val_folders) if self.val else []

    def test_dataloader(self) -> StreamLoader:
        if not self.test:
            raise VirtueError("test is not set: give the folders of evaluation shards by name")
        return self._ranking_loader(self.test_folders, self.test_rows)

    def predict_dataloader(self) -> StreamLoader:
        """The training samples of one epoch, or every picture, for what is stored of them (`predict`)."""
        if self.predict == "pairs":
            return self.train_dataloader()
        preprocess = self._connected()
        limits = {f"test/{name}": self.test_rows for name in self.test}
        folders = {folder.path.resolve(): (folder, limits.get(split)) for split, folder in reversed(self.folders().items())}
        shards = [(folder, shard) for folder, rows in reversed(folders.values()) for shard in folder.shards_within(rows)]
        stream = PictureStream(
            shards,
            preprocess.pictures,
            batch_size=self.eval_batch_size,
            features=self.features,
            fingerprints=preprocess.fingerprints,
            max_pixels=self.max_pixels,
            **self._place_and_limits(),
        )
        return self._loader(stream)

    def fingerprint(self) -> str:
        """Changes where any byte of any shard does."""
        folders = self.folders()
        return hashlib.sha256("".join(f"{split}={folder.manifest.fingerprint}\n" for split, folder in folders.items()).encode()).hexdigest()

    def describe(self) -> list[dict[str, Any]]:
        """What would be read, one entry a folder: split, path, task, licence, counts, samples and steps of an epoch, fingerprint."""
        return [{"split": split, "path": str(folder.path), **self._describe(split, folder)} for split, folder in self.folders().items()]

    def _read(self, folder: ShardFolder, rows: int | None) -> ShardFolder:
        """The folder as its pictures are to be read: at which size, and with what is stored of them (`_with_features`)."""
        if self.squash is not None and self.features is not None:
            raise VirtueError(f"squash is {self.squash}, but features are of pictures at their own size: leave squash or features out")
        return replace(self._with_features(folder, rows), squash=self.squash)

    def _with_features(self, folder: ShardFolder, rows: int | None) -> ShardFolder:
        """The folder with its stored features, if they are to be read; they must cover the shards with its first `rows` rows."""
        if self.features is None or self.predict == "pictures" or self._preprocess is None:
            return folder
        path, manifest = folder.path / self.features, folder.manifest
        index = FeatureIndex.read(path)
        streams = index.check(path, self._preprocess.fingerprints)
        index.check_shards(path, manifest.fingerprint, [shard.name for shard in folder.shards_within(rows)])
        return replace(folder, features=StoredFeatures(path, streams))

    def folders(self) -> dict[str, ShardFolder]:
        """Every folder that is set, by its split: "train", "val/NAME", "test/NAME"."""
        train = {} if self.train is None else {"train": self.train_folder}
        return train | {f"val/{n}": f for n, f in self.val_folders.items()} | {f"test/{n}": f for n, f in self.test_folders.items()}

    def _describe(self, split: str, folder: ShardFolder) -> dict[str, Any]:
        if split == "train":
            return describe_folder(folder, self.steps * self.batch_size * self.world, self.steps)
        rows = folder.manifest.rows
        return describe_folder(folder, rows, -(-rows // (self.eval_batch_size * self.world)))

    def _ranking_loader(self, folders: Mapping[str, ShardFolder], rows: int | None = None) -> StreamLoader:
        collate = self._connected().evaluate
        size, pixels = self.eval_batch_size, self.max_pixels
        return self._loader(RankingStream(folders, self.to_sample, collate, batch_size=size, rows=rows, max_pixels=pixels, **self._place_and_limits()))


def describe_folder(folder: ShardFolder, samples: int, steps: int) -> dict[str, Any]:
    """What is in a folder, with the samples and steps that an epoch takes from it."""
    manifest = folder.manifest
    return {
        "task": manifest.task,
        "licence": manifest.licence,
        "shards": len(manifest.shards),
        "pictures": manifest.pictures,
        "rows": manifest.rows,
        "samples_per_epoch": samples,
        "steps": steps,
        "skipped_when_written": sum(manifest.skipped.values()),
        "fingerprint": manifest.fingerprint[:12],
    }


def _ranking_folders(paths: Mapping[str, str], option: str, cache: str, cache_gb: float | None) -> dict[str, ShardFolder]:
    folders = {name: ShardFolder.open(path, f"{option}.{name}", cache, cache_gb) for name, path in paths.items()}
    for name, folder in folders.items():
        if folder.manifest.kind != "rankings":
            raise VirtueError(f"{option}.{name}: {folder.path} holds {folder.manifest.kind}, expected rankings (evaluation shards)")
        if not folder.manifest.rows:
            raise VirtueError(f"{option}.{name}: {folder.path} holds no rows")
    return folders
