"""The DataModule of an evaluation: sets of MMEB and SCaR, from shards or official folders, as distinct inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from virtue_pl.data.eval_sets.files import SetFiles, find_set, missing_sets, resolvable, resolve_sets
from virtue_pl.data.eval_sets.images import ImageLibrary
from virtue_pl.data.eval_sets.options import EvaluationDataOptions
from virtue_pl.data.eval_sets.own import find_all_sets, own_sets
from virtue_pl.data.eval_sets.plan import EvaluationPlan, make_plan
from virtue_pl.data.eval_sets.read_set import describe_counts, read_set
from virtue_pl.data.eval_sets.rows import RowReader
from virtue_pl.data.streaming.options import check_counts
from virtue_pl.data.streaming.pipeline import ReaderInfo
from virtue_pl.types import (
    MAX_PIXELS,
    EvaluationRow,
    InputBatch,
    InputCollator,
    PixelLimit,
    SetDescription,
    VirtueError,
    suggest_path,
)


class EvaluationDataModule(LightningDataModule):
    """Evaluation sets by name; an input that occurs twice, in one set or in several, is embedded once.

    Args:
        root: a folder of folders of shards, or an official one: parquet files in it, in `data/`, `instruct/SET` or
            `v1/SET`, images in `images/`.
        sets: "scar", "mmeb", "scar_mini", "mmeb_mini", names of their sets, or of one's own folders of shards in
            `root`; None for all that have files there.
        options: which rows are read, and how.
        max_pixels: larger images are refused from their header, before anything is decoded.

    Example:
        >>> data = EvaluationDataModule("data/shards", ["scar_mini"], EvaluationDataOptions(limit=100))
        >>> data.connect(model.collator)  # doctest: +SKIP
        >>> len(data.plan.inputs), data.plan.total  # doctest: +SKIP
        (1100, 2200)
    """

    def __init__(
        self,
        root: str,
        sets: list[str] | None = None,
        options: EvaluationDataOptions = EvaluationDataOptions(),  # noqa: B008  # frozen
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__()
        check_counts({"limit": options.limit, "batch_size": options.batch_size, "max_pixels": max_pixels})
        check_counts({"resize_to_square": options.resize_to_square})
        check_counts({"num_workers": options.num_workers}, minimum=0)
        self.root = Path(root)
        self.sets = None if sets is None else list(sets)
        self.options = options
        self.library = ImageLibrary(options.resize_to_square, PixelLimit(max_pixels, "data.init_args.max_pixels"))
        self._collator: InputCollator | None = None

    def connect(self, collator: InputCollator) -> None:
        """Set the model's collator, which turns inputs into the model's batches."""
        self._collator = collator

    @cached_property
    def plan(self) -> EvaluationPlan:
        """Return the rows of every set, and the distinct inputs among them.

        Raises VirtueError for missing files, and DataError for a row that cannot be ranked.
        """
        query = self._require_collator().query
        found, missing, left_out = self.read_sets()
        return make_plan(found, query, self.library.sizes, missing, self.options.batch_size, left_out)

    def _require_collator(self) -> InputCollator:
        """Return the model's collator. Raises VirtueError where `connect` has not been called."""
        if self._collator is None:
            raise VirtueError(
                "EvaluationDataModule is not connected to a model: call connect(model.collator) before asking it for"
                " batches"
            )
        return self._collator

    def read_sets(self) -> ReadSets:
        """Return the rows of every set that has files, and what is left out.

        Raises VirtueError where the root, all files, or the files of a set are missing, and DataError for a row that
        cannot be ranked; with `allow_missing` only where no set has a row.
        """
        if not self.root.is_dir():
            raise VirtueError(f"--data {self.root}: there is no such folder{suggest_path(self.root)}")
        options, files = self.options, self.find_files()
        missing = {about.name: "no files" for about, found_files in files.items() if found_files is None}
        if len(missing) == len(files) or (missing and not options.allow_missing):
            hint = "" if len(missing) == len(files) else "; give --allow-missing to evaluate the others"
            raise VirtueError(missing_sets(self.root, missing) + hint)
        reader = RowReader(self.library, getattr(self._collator, "check_input", None))
        found = {
            about: read_set(found_files, reader, options.limit, options.allow_missing, options.candidates == "all")
            for about, found_files in files.items()
            if found_files is not None
        }
        for about, one in found.items():
            if not one.rows:
                why = f": {describe_counts(one.left_out)}" if one.left_out else ""
                if not (options.allow_missing and one.left_out) or not any(other.rows for other in found.values()):
                    raise VirtueError(f"{about.name} has no rows, expected queries to rank{why}")
                missing[about.name] = f"none of {one.total} queries can be ranked{why}"
        ranked = {about: one for about, one in found.items() if one.rows}
        return ReadSets(
            {about: one.rows for about, one in ranked.items()},
            missing,
            {about.name: one.left_out for about, one in ranked.items() if one.left_out},
        )

    def find_files(self) -> dict[SetDescription, SetFiles | None]:
        """Return the files of every set, None where there are none. Raises VirtueError for a set that is unknown."""
        images, pairs = [Path(folder) for folder in self.options.images], self.options.candidates == "all"
        if self.sets is None:
            return find_all_sets(self.root, self.options.form, images, pairs)
        own = own_sets(self.root, pairs) if len(resolvable(self.sets)) < len(self.sets) else {}
        named = {files.about: files for name, files in own.items() if name in self.sets}
        rest = [name for name in self.sets if name not in own]
        sets = resolve_sets(rest, own) if rest else []
        return {**named, **{about: find_set(self.root, about, self.options.form, images) for about in sets}}

    def test_dataloader(self) -> PlannedLoader:
        """Return this rank's batches of the plan."""
        trainer = self.trainer
        reader = ReaderInfo() if trainer is None else ReaderInfo(trainer.global_rank, trainer.world_size)
        return PlannedLoader(
            PlannedBatches(self.plan, self.library, self._require_collator(), reader), self.options.num_workers
        )

    def fingerprint(self) -> str:
        """Return the plan's fingerprint."""
        return self.plan.fingerprint()

    def describe(self) -> list[dict[str, Any]]:
        """Return what would be read, one entry for each set."""
        found, missing, _ = self.read_sets()
        there = [
            {"split": f"test/{about.name}", "path": str(self.root), "rows": len(rows), "task": about.meta_task}
            for about, rows in found.items()
        ]
        return [
            *there,
            *(
                {"split": f"test/{name}", "path": str(self.root), "rows": 0, "task": reason}
                for name, reason in missing.items()
            ),
        ]


class ReadSets(NamedTuple):
    """The rows of all sets that are ranked, and what is left out.

    Example:
        >>> ReadSets({}, {"RefCOCO+": "no files"}, {}).missing
        {'RefCOCO+': 'no files'}
    """

    rows: dict[SetDescription, list[EvaluationRow]]
    missing: dict[str, str]
    """The reason for which a set is left out, by its name."""
    left_out: dict[str, dict[str, int]]
    """Number of rows that are not ranked, by set and reason."""


class PlannedBatches(IterableDataset[InputBatch]):
    """This process's batches of a plan: every `world_size`-th one, without the inputs that are embedded already.

    All processes have equally many, so that none waits for another; the last batch may be empty.

    Example:
        >>> reader = ReaderInfo(rank=1, world_size=2)
        >>> batches = PlannedBatches(data.plan, data.library, collator, reader)  # doctest: +SKIP
        >>> len(batches) == -(-len(data.plan.batches) // 2)  # doctest: +SKIP
        True
    """

    def __init__(
        self, plan: EvaluationPlan, library: ImageLibrary, collator: InputCollator, reader: ReaderInfo
    ) -> None:
        super().__init__()
        self.plan = plan
        self.library = library
        self.collator = collator
        mine = plan.batches[reader.rank :: reader.world_size]
        most = max(1, -(-len(plan.batches) // reader.world_size))
        self.batches: Sequence[tuple[int, ...]] = [*mine, *[()] * (most - len(mine))]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[InputBatch]:
        info = get_worker_info()
        for numbers in self.batches if info is None else self.batches[info.id :: info.num_workers]:
            yield self.batch(numbers)

    def batch(self, numbers: Sequence[int]) -> InputBatch:
        """Return the inputs of these numbers that are not embedded yet, ready for the model."""
        missing = set(self.collator.missing_keys([self.plan.keys[number] for number in numbers]))
        numbers = [number for number in numbers if self.plan.keys[number] in missing]
        if not numbers:
            return InputBatch((), (), None)
        inputs = [self.plan.inputs[number] for number in numbers]
        pixels = {key: self.library.pixels(key) for item in inputs for key in item.image_keys}
        with_images = [replace(item, images=tuple(pixels[key] for key in item.image_keys)) for item in inputs]
        keys = tuple(self.plan.keys[number] for number in numbers)
        return InputBatch(
            keys, tuple(self.plan.sources[number] for number in numbers), self.collator.encoder_batch(with_images)
        )


class PlannedLoader:
    """The loader that a trainer iterates; it has a length, and no sampler that a trainer would replace.

    Example:
        >>> loader = PlannedLoader(batches, num_workers=2)  # doctest: +SKIP
        >>> next(iter(loader)).keys  # doctest: +SKIP
    """

    def __init__(self, batches: PlannedBatches, num_workers: int) -> None:
        self.batches = batches
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[InputBatch]:
        return iter(DataLoader(self.batches, batch_size=None, num_workers=self.num_workers))
