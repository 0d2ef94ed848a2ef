"""The DataModule of one's own shards: a folder of splits, of which training gives a share where none is to validate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from virtue_pl.data.datamodules.pairs import PairDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.datamodules.shards import describe_folder
from virtue_pl.data.eval_sets.plan import input_key
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.shards.manifest import MANIFEST, ShardFolder
from virtue_pl.data.shards.records import RecordImage, Row
from virtue_pl.data.streaming.loader import RankingStream, StreamLoader
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.types import EmbeddingInput, RankingSample, Sample, VirtueError, suggest_path

SPLITS = ("train", "val", "test")


class OwnDataModule(PairDataModule):
    """Trains on a folder of one's own shards, as `virtue-pl shards` writes them: `train`, and `val`, `test` if there.

    Where there is no `val`, the last `val_share` of the images of `train` are held out: shards have their images in
    random order, so that it is a random share, the same for the same shards. Its rows are ranked among the targets of
    their batch (`eval_batch_size` rows) and their own negatives.

    Args:
        root: the folder with `train`, or a folder of training shards itself.
        val_share: share of the images to validate on where there is no `val`, from 0 (none) to below 1.
        batch_size, eval_batch_size, test_rows, features, predict, sampling, reader, cache: see `ShardDataModule`.

    Raises VirtueError for a share that is none, and in `setup` for a root without training shards.

    Example:
        >>> OwnDataModule("data/shards/my_pairs", val_share=0.1, batch_size=8)  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | None,
        val_share: float = 0.0,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        test_rows: int | None = None,
        features: str | None = None,
        predict: Literal["pairs", "images"] = "pairs",
        sampling: SamplingOptions = SamplingOptions(),
        reader: ReaderOptions = ReaderOptions(),
        cache: CacheOptions = CacheOptions(),
    ) -> None:
        if not 0 <= val_share < 1:
            raise VirtueError(
                f"val_share is {val_share:g}, expected a share of the images of `train`: 0 (none) or more, and less"
                " than 1"
            )
        if root is None:
            raise VirtueError("shards is not set, expected a folder with train/: --shared.shards")
        found = find_splits(Path(root))
        super().__init__(
            str(found.get("train", Path(root) / "train")),
            str(found["val"]) if "val" in found else None,
            {"test": str(found["test"])} if "test" in found else None,
            batch_size,
            eval_batch_size,
            test_rows,
            features,
            predict,
            sampling,
            reader,
            cache,
        )
        self.root = root
        self.val_share = 0.0 if "val" in found else val_share

    def setup(self, stage: str) -> None:
        """Raise VirtueError where there is nothing to train on, and that is wanted."""
        if stage == "fit":
            check_splits(Path(self.root))

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        is_scar = isinstance(row["query"], str)
        return (SCaRDataModule if is_scar else PairDataModule).to_sample(row, images)

    @cached_property
    def whole_folder(self) -> ShardFolder:
        """Return the folder of training shards, with the images that are held out."""
        return self.open_train()

    @cached_property
    def train_folder(self) -> ShardFolder:
        """Return the folder of training shards without the images that are held out."""
        whole, rows = self.whole_folder, self.first_held_out
        return whole if rows is None else whole.limit_rows(rows)

    @cached_property
    def first_held_out(self) -> int | None:
        """Return the first row of the images that are held out; None where none are.

        Raises VirtueError where there are too few images to hold some out.
        """
        if not self.val_share:
            return None
        counts = [count for shard in self.whole_folder.manifest.shards for count in shard.rows_per_image]
        held_out = max(1, round(self.val_share * len(counts)))
        if held_out >= len(counts):
            raise VirtueError(
                f"val_share is {self.val_share:g}, but {self.train} has {len(counts)} images, expected at least one to"
                " train on and one to validate on: set it to 0, or give val/"
            )
        return sum(counts[:-held_out])

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """Return the validation set, or the images that are held out; an empty list where there is neither."""
        if self.first_held_out is None:
            return super().val_dataloader()
        collate = partial(rank_in_batch, self._require_collator().collate_eval)
        return self._loader(self._held_out(collate, self.eval_batch_size))

    def first_rankings(self, rows: int) -> list[RankingSample]:
        """Return up to `rows` first validation samples, of those that are held out, too."""
        if self.first_held_out is None or not all(path.is_file() for path in self.whole_folder.paths):
            return super().first_rankings(rows)
        stream = self._held_out(partial(rank_in_batch, list), min(rows, self.eval_batch_size))
        return list(islice((sample for delivery in stream for sample in delivery.batch or ()), rows))

    def _held_out(self, collate: Callable[[Sequence[Any]], Any], batch_size: int) -> RankingStream:
        """Return the stream of the images that are held out."""
        return RankingStream(
            {"val": self.whole_folder},
            self.to_sample,
            collate,
            batch_size=batch_size,
            first_row=self.first_held_out or 0,
            max_pixels=self.reader.pixel_limit,
            reader=self.reader_info(),
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return an entry for each folder, see `ShardDataModule.describe`, and one for what is held out."""
        found = super().describe()
        if self.first_held_out is None:
            return found
        whole, trained = self.whole_folder, self.train_folder.manifest
        rows = whole.manifest.rows - trained.rows
        steps = -(-rows // (self.eval_batch_size * self.world_size))
        counts = {"images": whole.manifest.images - trained.images, "rows": rows}
        held_out = {**describe_folder(whole, rows, steps), **counts}
        split = {"split": f"val: {self.val_share:g} of train", "path": str(whole.path)}
        return [found[0], {**split, **held_out}, *found[1:]]


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folders of shards in a folder by split; the folder itself is "train" where it holds shards."""
    if (root / MANIFEST).is_file():
        return {"train": root}
    return {name: root / name for name in SPLITS if (root / name / MANIFEST).is_file()}


def check_splits(root: Path) -> None:
    """Raise VirtueError, which names what there is, where there are no shards to train on."""
    if not root.is_dir():
        raise VirtueError(
            f"shards: {root} is no folder, expected one with train/ (--shared.shards){suggest_path(root)}"
        )
    if "train" not in find_splits(root):
        there = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))) or "no shards"
        raise VirtueError(
            f"shards: {root} holds {there}, expected train/, as `virtue-pl shards pairs` writes it of train.jsonl:"
            " change --shared.shards, or name the folder with the shards to train on itself"
        )


def rank_in_batch(collate: Callable[[Sequence[RankingSample]], Any], samples: Sequence[Sample | RankingSample]) -> Any:
    """Return the evaluation batch of training samples; `collate` is that of the model.

    Each one's candidates are its target, its negatives, and the other samples' targets, each content once.
    """
    return collate([ranked_sample(sample, samples) if isinstance(sample, Sample) else sample for sample in samples])


def ranked_sample(sample: Sample, batch: Sequence[Sample | RankingSample]) -> RankingSample:
    """Return a training sample as a query to rank, its target first."""
    others = [other.target for other in batch if isinstance(other, Sample) and other is not sample]
    candidates: dict[str, EmbeddingInput] = {}
    for item in (sample.target, *sample.negatives, *others):
        candidates.setdefault(input_key(item), item)
    ranking = {"hit@1": tuple(range(len(candidates)))}
    return RankingSample(sample.key, sample.task, sample.query, tuple(candidates.values()), ranking, sample.region)
