"""The DataModule of MMEB and SCaR by name.

It takes any of their sets, each a folder of shards as the converters name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from virtue_pl.data.datamodules.mixture import MixedDataModule
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.datamodules.shards import ShardDataModule
from virtue_pl.data.formats.catalogue import mmeb_sets, scar_sets
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.types import VirtueError

Value = TypeVar("Value")


@dataclass(frozen=True)
class BenchmarkMixture:
    """Options of mixing training batches from the sets, and of drawing samples.

    Example:
        >>> BenchmarkMixture(num_negatives={"ADE20K": 9}).sampling_of("CIRR").num_negatives
        0
    """

    weights: dict[str, float] | None = None
    """Relative frequency of the blocks of each set; default alike, 0 leaves a set out."""
    block_size: int = 8
    """Samples of one set, side by side in a batch; it divides `batch_size` (the paper: 64 of 1024)."""
    steps_per_epoch: int | None = None
    """Training steps of an epoch; default as many as go into the rows of all trained sets once."""
    train_rows: int | dict[str, int] | None = None
    """At most so many training rows of every set, the first ones (the paper: 100,000); or by set, for some."""
    num_negatives: int | dict[str, int] = 0
    """Hard negatives of every set's queries; or by set, for some, and none for the others. MMEB has next to none."""
    shuffle_buffer: int = 500
    """Images of every set that are shuffled among each other."""
    sample_buffer: int = 64
    """Samples of every set that are then shuffled among each other."""
    distinct: bool = True
    """No sample is twice in a batch, and of a set's samples with an equal target all but one wait for the next; false
    cuts batches in the order in which samples come, as the paper's training does.
    """

    def check_names(self, names: Sequence[str]) -> None:
        """Raise VirtueError for rows or negatives of a set that is not among `names`."""
        for option, by_set in (("train_rows", self.train_rows), ("num_negatives", self.num_negatives)):
            for name in by_set if isinstance(by_set, Mapping) else ():
                if name not in names:
                    raise VirtueError(f"{option}: {name!r} is not among the sets, expected some of {', '.join(names)}")

    def sampling_of(self, name: str) -> SamplingOptions:
        """Return how samples of one set are drawn. Raises VirtueError for an impossible count."""
        return SamplingOptions(
            num_negatives=value_for_set(self.num_negatives, name, 0),
            train_rows=value_for_set(self.train_rows, name, None),
            shuffle_buffer=self.shuffle_buffer,
            sample_buffer=self.sample_buffer,
            distinct=self.distinct,
        )


class BenchmarkDataModule(MixedDataModule):
    """Trains on the chosen sets in blocks, and tests on all of them (`MixedDataModule`).

    Args:
        sets: names of sets (`ImageNet_1K`, `RefCOCOg`), or of groups: `mmeb` (36 sets, of which 20 are trained on),
            `mmeb_mini`, `scar`, and MMEB's meta-tasks and distributions, `mmeb_vqa`, `mmeb_IND` and the like
            (`groups`).
        root: folder or URL below which every set has its folders of shards, by the names that `virtue-pl shards` gives
            them.
        train: whether to train on the sets that can be; else they are only tested.
        batch_size: training samples a step and rank.
        eval_batch_size: of sets whose candidates are texts. Those whose candidates are images, up to a thousand a row,
            are tested row by row.
        test_rows, features, predict, cache: of every set, see `ShardDataModule`.
        mixture: how training batches are mixed of the sets.
        reader: how records are read, of every set.

    Example:
        >>> mixture = BenchmarkMixture(block_size=64, train_rows=100_000)
        >>> data = BenchmarkDataModule(["mmeb", "scar"], "data/shards", batch_size=1024, mixture=mixture)
        >>> len(data.parts), len(data.weights)
        (41, 25)
    """

    def __init__(
        self,
        sets: list[str],
        root: str,
        train: bool = True,
        batch_size: int = 32,
        eval_batch_size: int = 16,
        test_rows: int | None = None,
        features: str | None = None,
        predict: Literal["pairs", "images"] | None = None,
        mixture: BenchmarkMixture = BenchmarkMixture(),
        reader: ReaderOptions = ReaderOptions(),
        cache: CacheOptions = CacheOptions(),
    ) -> None:
        names = select_sets(sets)
        mixture.check_names(names)
        parts: dict[str, ShardDataModule] = {}
        for name in names:
            module, trained, tested, images = locate_set(name)
            parts[name] = module(
                f"{root.rstrip('/')}/{trained}" if train and trained else None,
                test={"test": f"{root.rstrip('/')}/{tested}"} if tested else None,
                eval_batch_size=1 if images else eval_batch_size,
                test_rows=test_rows,
                sampling=mixture.sampling_of(name),
                reader=reader,
                cache=cache,
            )
        weights, block_size, steps = mixture.weights, mixture.block_size, mixture.steps_per_epoch
        super().__init__(parts, weights, batch_size, block_size, steps, features, predict, reader=reader)


def groups() -> dict[str, tuple[str, ...]]:
    """Return the sets of every group, by its name."""
    found: dict[str, list[str]] = {"scar": list(scar_sets())}
    for name, one in mmeb_sets().items():
        benchmark = "mmeb" if one.distribution else "mmeb_mini"
        for group in (
            benchmark,
            f"{benchmark}_{one.meta_task}",
            *([f"{benchmark}_{one.distribution}"] if one.distribution else []),
        ):
            found.setdefault(group, []).append(name)
    return {group: tuple(names) for group, names in found.items()}


def select_sets(sets: Sequence[str]) -> tuple[str, ...]:
    """Return every set that is named, itself or by a group, once.

    Raises VirtueError for a name that is neither, and for no name.
    """
    by_group, single = groups(), {*mmeb_sets(), *scar_sets()}
    for name in sets:
        if name not in by_group and name not in single:
            raise VirtueError(
                f"sets: {name!r} is no set and no group, expected some of {', '.join(sorted(by_group))}, or names like"
                " ImageNet_1K"
            )
    if not sets:
        raise VirtueError(f"sets is empty, expected some of {', '.join(sorted(by_group))}, or names like ImageNet_1K")
    return tuple(dict.fromkeys(one for name in sets for one in by_group.get(name, (name,))))


def locate_set(name: str) -> tuple[type[ShardDataModule], str, str, bool]:
    """Return a set's DataModule, its folders of training and of evaluation shards, and whether it ranks images.

    A folder is "" where the set has none.
    """
    if name in scar_sets():
        return SCaRDataModule, scar_sets()[name].train_file, scar_sets()[name].eval_file, False
    one = mmeb_sets()[name]
    trained = f"MMEB_{name}" if one.train_folder or not one.distribution else ""
    return MMEBDataModule, trained, f"MMEB_eval_{name}", one.wording.endswith("2i")


def value_for_set(value: Value | Mapping[str, Value], name: str, default: Value) -> Value:
    """Return the value for one set: its own, or the one for all."""
    return value.get(name, default) if isinstance(value, Mapping) else value
