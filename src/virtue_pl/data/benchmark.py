"""MMEB and SCaR by name: one DataModule over any of their sets, each a folder of shards as the converters name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from virtue_pl.data.benchmark_sets import mmeb_sets, scar_sets
from virtue_pl.data.mixture import MixedDataModule
from virtue_pl.data.mmeb import MMEBDataModule
from virtue_pl.data.remote import CACHE
from virtue_pl.data.scar import SCaRDataModule
from virtue_pl.data.shard_module import ShardDataModule
from virtue_pl.images import MAX_PIXELS
from virtue_pl.types import VirtueError

Value = TypeVar("Value")


class BenchmarkDataModule(MixedDataModule):
    """Trains on the chosen sets in blocks, and tests on all of them (`MixedDataModule`).

    Args:
        sets: names of sets (`ImageNet_1K`, `RefCOCOg`), or of groups: `mmeb` (36 sets, of which 20 are trained on), `mmeb_mini`, `scar`, and
            MMEB's meta-tasks and distributions, `mmeb_vqa`, `mmeb_IND` and the like (`groups`).
        root: folder or URL below which every set has its folders of shards, by the names that `virtue-pl shards` gives them.
        train: whether to train on the sets that can be; else they are only tested.
        train_rows: at most so many training rows of every set, the first ones (the paper: 100,000); or by set, for some.
        num_negatives: hard negatives of every set's queries; or by set, for some, and none for the others. MMEB has next to none.
        eval_batch_size: of sets whose candidates are texts. Those whose candidates are pictures, up to a thousand a row, are tested
            row by row.
        weights, batch_size, block_size, steps_per_epoch, num_workers, seed, max_bad_samples, max_consecutive_bad: see `MixedDataModule`.
        test_rows, shuffle_buffer, sample_buffer, max_pixels, squash, cache, cache_gb, features, predict: of every set, see `ShardDataModule`.
    """

    def __init__(
        self,
        sets: list[str],
        root: str,
        train: bool = True,
        train_rows: int | dict[str, int] | None = None,
        num_negatives: int | dict[str, int] = 0,
        weights: dict[str, float] | None = None,
        batch_size: int = 32,
        block_size: int = 8,
        steps_per_epoch: int | None = None,
        eval_batch_size: int = 16,
        test_rows: int | None = None,
        num_workers: int = 0,
        shuffle_buffer: int = 500,
        sample_buffer: int = 64,
        seed: int = 0,
        max_bad_samples: int = 100,
        max_consecutive_bad: int = 20,
        max_pixels: int = MAX_PIXELS,
        squash: int | None = None,
        cache: str = CACHE,
        features: str | None = None,
        predict: Literal["pairs", "pictures"] | None = None,
        cache_gb: float | None = None,
    ) -> None:
        names = chosen(sets)
        for option, by_set in (("train_rows", train_rows), ("num_negatives", num_negatives)):
            check_names(option, by_set, names)
        parts: dict[str, ShardDataModule] = {}
        for name in names:
            module, trained, tested, pictures = place_of(name)
            parts[name] = module(
                f"{root.rstrip('/')}/{trained}" if train and trained else None,
                test={"test": f"{root.rstrip('/')}/{tested}"} if tested else None,
                eval_batch_size=1 if pictures else eval_batch_size,
                num_negatives=of_set(num_negatives, name, 0),
                train_rows=of_set(train_rows, name, None),
                test_rows=test_rows,
                shuffle_buffer=shuffle_buffer,
                sample_buffer=sample_buffer,
                max_pixels=max_pixels,
                squash=squash,
                cache=cache,
                cache_gb=cache_gb,
            )
        super().__init__(parts, weights, batch_size, block_size, steps_per_epoch, num_workers, seed, max_bad_samples, max_consecutive_bad, features, predict)


def groups() -> dict[str, tuple[str, ...]]:
    """The sets of every group, by its name."""
    found: dict[str, list[str]] = {"scar": list(scar_sets())}
    for name, one in mmeb_sets().items():
        benchmark = "mmeb" if one.distribution else "mmeb_mini"
        for group in (benchmark, f"{benchmark}_{one.meta_task}", *([f"{benchmark}_{one.distribution}"] if one.distribution else [])):
            found.setdefault(group, []).append(name)
    return {group: tuple(names) for group, names in found.items()}


def chosen(sets: Sequence[str]) -> tuple[str, ...]:
    """Every set that is named, itself or by a group, once. Raises VirtueError for a name that is neither, and for none."""
    known, single = groups(), {*mmeb_sets(), *scar_sets()}
    for name in sets:
        if name not in known and name not in single:
            raise VirtueError(f"sets: {name!r} is no set and no group, expected some of {', '.join(sorted(known))}, or names like ImageNet_1K")
    if not sets:
        raise VirtueError(f"sets is empty, expected some of {', '.join(sorted(known))}, or names like ImageNet_1K")
    return tuple(dict.fromkeys(one for name in sets for one in known.get(name, (name,))))


def place_of(name: str) -> tuple[type[ShardDataModule], str, str, bool]:
    """The module of a set, its folders of training and evaluation shards ("" where it has none), and whether its candidates are pictures."""
    if name in scar_sets():
        return SCaRDataModule, scar_sets()[name].train_file, scar_sets()[name].eval_file, False
    one = mmeb_sets()[name]
    trained = f"MMEB_{name}" if one.train_folder or not one.distribution else ""
    return MMEBDataModule, trained, f"MMEB_eval_{name}", one.wording.endswith("2i")


def check_names(option: str, by_set: object, names: Sequence[str]) -> None:
    for name in by_set if isinstance(by_set, Mapping) else ():
        if name not in names:
            raise VirtueError(f"{option}: {name!r} is not among the sets, expected some of {', '.join(names)}")


def of_set(value: Value | Mapping[str, Value], name: str, default: Value) -> Value:
    """What holds for one set: its own, or everyone's."""
    return value.get(name, default) if isinstance(value, Mapping) else value
