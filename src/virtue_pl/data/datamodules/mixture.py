"""Several datasets as one: training batches made of blocks, each from one dataset, and evaluation of all."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from virtue_pl.data.datamodules.base import StreamingDataModule
from virtue_pl.data.datamodules.shards import ShardDataModule, describe_folder
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming.loader import BatchStream, StreamLoader
from virtue_pl.data.streaming.options import ReaderOptions, check_counts
from virtue_pl.data.streaming.pipeline import ReaderInfo, SkipLog, TrainingSource
from virtue_pl.data.streaming.readable_samples import check_source
from virtue_pl.data.streaming.seeds import derive_seed
from virtue_pl.data.streaming.training_stream import PlannedStream
from virtue_pl.types import Collator, RankingSample, Sample, VirtueError


class MixedDataModule(StreamingDataModule):
    """Trains on several datasets at once, as the paper does on MMEB and SCaR, and evaluates on all of them.

    A training batch is made of blocks of samples of one dataset, so that a query's negatives in the batch are mostly of
    its own kind. Which dataset a block is of is drawn by weight, alike on every rank. A part's own `batch_size`,
    `sampling.steps_per_epoch` and `reader` count only where it is used alone, but for the images' sizes in `reader`.

    Args:
        parts: the datasets by name, each as it would be alone; one without `train` is only evaluated.
        weights: how often blocks of a part are drawn, relative to each other; default alike, 0 leaves a part out.
        batch_size: training samples a step and rank.
        block_size: samples of a block, which divides `batch_size` (the paper: 64 of 1024).
        steps_per_epoch: default as many as go into the rows of all trained parts once.
        features, predict, eval_batch_size: of every part, where they are given here.
        reader: how records are read; the images' sizes are each part's own.

    Example:
        >>> from virtue_pl.data.datamodules.scar import SCaRDataModule
        >>> parts = {"scar": SCaRDataModule("shards/SCAR_mini"), "more": SCaRDataModule("shards/SCAR_more")}
        >>> MixedDataModule(parts, {"scar": 3.0, "more": 1.0}, batch_size=64, block_size=16).weights
        {'scar': 3.0, 'more': 1.0}
    """

    def __init__(
        self,
        parts: dict[str, ShardDataModule],
        weights: dict[str, float] | None = None,
        batch_size: int = 32,
        block_size: int = 8,
        steps_per_epoch: int | None = None,
        features: str | None = None,
        predict: Literal["pairs", "images"] | None = None,
        eval_batch_size: int | None = None,
        reader: ReaderOptions = ReaderOptions(),
    ) -> None:
        super().__init__(batch_size, reader)
        check_counts({"block_size": block_size, "steps_per_epoch": steps_per_epoch, "eval_batch_size": eval_batch_size})
        if batch_size % block_size:
            raise VirtueError(f"batch_size is {batch_size}, expected a multiple of block_size = {block_size}")
        self.parts = dict(parts)
        self.weights = weights_of(self.parts, weights)
        self.block_size = block_size
        self.steps_per_epoch = steps_per_epoch
        self.predict = predict or "pairs"
        for part in self.parts.values():
            part.features = features or part.features
            part.predict = predict or part.predict
            part.eval_batch_size = eval_batch_size or part.eval_batch_size

    def connect(self, collator: Collator) -> None:
        """Set the model's collator, here and in every part."""
        super().connect(collator)
        for part in self.parts.values():
            part.connect(collator)

    @property
    def steps(self) -> int:
        """Return the training steps of an epoch, on every rank.

        Raises VirtueError where the rows are fewer than a batch.
        """
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        rows = sum(self.parts[name].train_folder.manifest.rows for name in self.weights)
        needed = self.batch_size * self.world_size
        if rows < needed:
            few = (
                f"the {rows} rows of {', '.join(self.weights)} are fewer than one batch of {needed} (over"
                f" {self.world_size} ranks)"
            )
            raise VirtueError(f"{few}: lower batch_size (--shared.batch_size)")
        return rows // needed

    def training_rows(self) -> dict[str, str]:
        """Return the training rows of each part and the order in which they come, in words."""
        seed = self.reader.seed
        return {
            name: self.parts[name].training_source(derive_seed(seed, name)).describe_rows() for name in self.weights
        }

    def find_first_problems(self, rows: int) -> tuple[int, dict[str, str]]:
        """Return how many of each part's first training rows were read, and the problems of those of no use."""
        found = [part.find_first_problems(rows) for name, part in self.parts.items() if name in self.weights]
        return sum(count for count, _ in found), {key: text for _, some in found for key, text in some.items()}

    def first_samples(self, rows: int) -> list[Sample]:
        """Return up to `rows` first training samples of each part, see `ShardDataModule.first_samples`."""
        trained = [part for name, part in self.parts.items() if name in self.weights]
        return [sample for part in trained for sample in part.first_samples(rows)]

    def first_rankings(self, rows: int) -> list[RankingSample]:
        """Return up to `rows` first validation samples of each part's folders."""
        return [sample for part in self.parts.values() for sample in part.first_rankings(rows)]

    def train_dataloader(self) -> StreamLoader:
        """Return the mixed training stream. Raises VirtueError where no part is trained on."""
        if not self.weights:
            raise VirtueError("no part has training shards and a weight above 0: set `train` of some of the parts")
        seed = self.reader.seed
        trained = {name: part for name, part in self._attach_trainer().items() if name in self.weights}
        collator = self._require_collator()
        sources = {
            name: check_source(part.training_source(derive_seed(seed, name)), collator)
            for name, part in trained.items()
        }
        stream = MixedStream(
            sources,
            self.weights,
            collator.collate_train,
            blocks=self.batch_size // self.block_size,
            block_size=self.block_size,
            steps=self.steps,
            seed=seed,
            reader=self.reader_info(),
        )
        return self._loader(stream)

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """Return the validation sets of all parts, one after the other; an empty list where there are none."""
        loaders = [part.val_dataloader() for part in self._attach_trainer().values() if part.val]
        return self._join(loaders) if loaders else []

    def test_dataloader(self) -> StreamLoader:
        """Return the test sets of all parts, one after the other. Raises VirtueError where there are none."""
        if not any(part.test for part in self.parts.values()):
            raise VirtueError("no part has `test`: give some of them folders of evaluation shards by name")
        return self._join([part.test_dataloader() for part in self._attach_trainer().values() if part.test])

    def predict_dataloader(self) -> StreamLoader:
        """Return one epoch of training samples, or every image of every part, as `predict` says ("pairs", "images")."""
        if self.predict == "pairs":
            return self.train_dataloader()
        return self._join([part.predict_dataloader() for part in self._attach_trainer().values()])

    def fingerprint(self) -> str:
        """Return a fingerprint of the shards of all parts, which changes with any of their bytes."""
        return hashlib.sha256(
            "".join(f"{name}={part.fingerprint()}\n" for name, part in self.parts.items()).encode()
        ).hexdigest()

    def num_queries(self) -> dict[str, int]:
        """Return the number of queries that a test ranks in all parts, see `ShardDataModule.num_queries`."""
        return {task: count for part in self.parts.values() for task, count in part.num_queries().items()}

    def left_out(self) -> dict[str, dict[str, int]]:
        """Return the number of a test's queries that are left out in all parts, see `ShardDataModule.left_out`."""
        return {task: counts for part in self.parts.values() for task, counts in part.left_out().items()}

    def describe(self) -> list[dict[str, Any]]:
        """Return one entry for each folder of a part, see `ShardDataModule.describe`.

        The number of training samples of an epoch is the expected one, by the part's weight.
        """
        return [
            {"split": f"{name}/{split}", "path": str(folder.path), **self._describe(name, split, folder)}
            for name, part in self.parts.items()
            for split, folder in part.folders().items()
        ]

    def _describe(self, name: str, split: str, folder: ShardFolder) -> dict[str, Any]:
        rows = folder.manifest.rows
        if split != "train":
            return describe_folder(folder, rows, -(-rows // (self.parts[name].eval_batch_size * self.world_size)))
        share = self.weights.get(name, 0.0) / sum(self.weights.values()) if self.weights else 0.0
        samples = round(share * self.steps * self.batch_size * self.world_size)
        return {**describe_folder(folder, samples, self.steps), "weight": round(share, 3)}

    def _attach_trainer(self) -> dict[str, ShardDataModule]:
        """Set this module's trainer in every part; return the parts."""
        for part in self.parts.values():
            part.trainer = self.trainer
        return self.parts

    def _join(self, loaders: Sequence[Any]) -> StreamLoader:
        return self._loader(JoinedStream([loader.stream for loader in loaders], self.reader_info()))


def weights_of(parts: Mapping[str, ShardDataModule], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weight of every part that is trained on.

    Raises VirtueError for a name that is no part's, for a negative weight, and for a part without one.
    """
    trained = [name for name, part in parts.items() if part.train is not None]
    if weights is None:
        return dict.fromkeys(trained, 1.0)
    for name, weight in weights.items():
        if name not in trained:
            raise VirtueError(
                f"weights: {name!r} is no part with training shards, expected some of {', '.join(trained)}"
            )
        if not 0 <= weight < float("inf"):
            raise VirtueError(f"weights: {name} has {weight}, expected 0 or more")
    missing = [name for name in trained if name not in weights]
    if missing:
        raise VirtueError(
            f"weights: {', '.join(missing)} have none: give one to every part with training shards, 0 to leave it out"
        )
    return {name: weights[name] for name in trained if weights[name]}


class MixedStream(PlannedStream):
    """Training batches, `steps` for a rank and epoch, each of `blocks` blocks of samples of one dataset.

    The datasets of a step's blocks depend on seed and step alone: every rank has as many hard negatives. Of each
    dataset every row comes once before any comes again. One that is drawn for more blocks than its rows fill in one
    batch gives the rest to the others. Raises VirtueError for a dataset with fewer rows than a block, and where all
    together have too few for a batch.

    Args:
        sources: each dataset, with a seed of its own.
        weights: how often blocks of a dataset are drawn, relative to each other.
        collate: `Collator.collate_train`.
        blocks: blocks of a batch.
        block_size: samples of a block.
        steps: batches of an epoch.
        seed: of the datasets of a step's blocks.
        reader: see `BatchStream`.

    Example:
        >>> stream = MixedStream({}, {"scar": 3.0, "more": 1.0}, list, blocks=4, block_size=2, steps=1, seed=0,
        ...     reader=ReaderInfo())
        >>> sum(stream.sizes(step=0).values())
        8
    """

    def __init__(
        self,
        sources: Mapping[str, TrainingSource],
        weights: Mapping[str, float],
        collate: Callable[[Sequence[Sample]], Any],
        *,
        blocks: int,
        block_size: int,
        steps: int,
        seed: int,
        reader: ReaderInfo,
    ) -> None:
        super().__init__(sources, collate, steps=steps, seed=seed, reader=reader)
        self.weights = dict(weights)
        self.blocks = blocks
        self.block_size = block_size
        self.most = {name: source.folder.manifest.rows // block_size for name, source in sources.items()}
        """The most blocks of each dataset in one batch."""
        few = next((name for name, most in self.most.items() if not most), None)
        if few is not None:
            raise VirtueError(
                f"the {sources[few].folder.manifest.rows} training rows of {few} fill no block of {block_size}: lower"
                " block_size, or leave the part out"
            )
        if self.most and sum(self.most.values()) < blocks:
            raise VirtueError(
                f"the rows of {', '.join(self.most)} fill {sum(self.most.values())} blocks of {block_size}, a batch has"
                f" {blocks}: lower batch_size"
            )

    def sizes(self, step: int) -> dict[str, int]:
        """Return how many samples of each dataset are in the batch of a step, in the batch's order."""
        generator = random.Random(derive_seed(self.seed, step))
        drawn = Counter(generator.choices(list(self.weights), list(self.weights.values()), k=self.blocks))
        while over := [name for name, most in self.most.items() if drawn[name] > most]:
            drawn[over[0]] -= 1
            left = [name for name, most in self.most.items() if drawn[name] < most and name != over[0]]
            drawn[generator.choices(left, [self.weights[name] for name in left])[0]] += 1
        return {name: drawn[name] * self.block_size for name in self.weights if drawn[name]}


class JoinedStream(BatchStream):
    """The batches of several streams, one stream after the other, dealt to data workers in one turn.

    Example:
        >>> joined = JoinedStream([first, second], ReaderInfo())  # doctest: +SKIP
        >>> joined.num_batches == first.num_batches + second.num_batches  # doctest: +SKIP
        True
    """

    def __init__(self, streams: Sequence[BatchStream], reader: ReaderInfo) -> None:
        super().__init__(reader)
        self.streams = tuple(streams)

    @property
    def num_batches(self) -> int:
        return sum(stream.num_batches for stream in self.streams)

    def batches(self, reader: ReaderInfo, epoch: int, log: SkipLog) -> Iterator[Any]:
        offset = 0
        for stream in self.streams:
            worker = (reader.worker - offset) % reader.num_workers
            yield from stream.batches(replace(reader, worker=worker), epoch, log)
            offset += stream.num_batches
