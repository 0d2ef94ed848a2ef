"""Options that travel together, from YAML to the streams: how data is read, and how training samples are drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from virtue_pl.types import MAX_PIXELS, PixelLimit, VirtueError

MAX_WORKERS = 8
"""Data workers that are started without being asked for by number."""


def check_counts(counts: Mapping[str, int | None], minimum: int = 1) -> None:
    """Raise VirtueError, which names the option, for a value below `minimum`; None is an option that is not set."""
    for option, value in counts.items():
        if value is not None and value < minimum:
            raise VirtueError(f"{option} is {value}, expected {minimum} or more")


@dataclass(frozen=True)
class BadSampleLimits:
    """Limits of the number of bad samples, above which a run stops.

    Example:
        >>> BadSampleLimits(max_bad_samples=10)
        BadSampleLimits(max_bad_samples=10, max_consecutive_bad=20)
    """

    max_bad_samples: int = 100
    """How many different bad samples each worker skips before the run stops."""
    max_consecutive_bad: int = 20
    """How many bad samples in a row each worker skips before the run stops."""

    def __post_init__(self) -> None:
        check_counts(
            {"max_bad_samples": self.max_bad_samples, "max_consecutive_bad": self.max_consecutive_bad}, minimum=0
        )


@dataclass(frozen=True)
class ReaderOptions:
    """Options of reading records, for training and evaluation alike.

    Example:
        >>> ReaderOptions(num_workers=2).limits
        BadSampleLimits(max_bad_samples=100, max_consecutive_bad=20)
    """

    num_workers: int | Literal["auto"] = 0
    """Data workers a rank; 0 reads in the training process; auto: on a GPU as many as its share of the processor has
    cores, 8 at most, else 0.
    """
    seed: int = 0
    """Seed of the training stream."""
    max_bad_samples: int = BadSampleLimits.max_bad_samples
    """How many different bad samples each worker skips before the run stops."""
    max_consecutive_bad: int = BadSampleLimits.max_consecutive_bad
    """How many bad samples in a row each worker skips before the run stops."""
    max_pixels: int = MAX_PIXELS
    """Larger images count as bad, by their header, before anything is decoded."""
    resize_to_square: int | None = None
    """Every image is stretched to a square of so many pixels a side, as the published evaluation does (1344), before
    anything else sees it; default none, the image's own size. How many pixels the vision tower reads is an option of
    the backbone.
    """

    def __post_init__(self) -> None:
        check_counts({"max_pixels": self.max_pixels, "resize_to_square": self.resize_to_square})
        if isinstance(self.num_workers, int):
            check_counts({"num_workers": self.num_workers}, minimum=0)
        _ = self.limits

    def count_workers(self, accelerator: str, local_ranks: int) -> int:
        """Return the number of data workers of a rank.

        accelerator: the device type that trains, as "cuda" or "cpu". local_ranks: ranks of this machine.
        """
        if isinstance(self.num_workers, int):
            return self.num_workers
        cores = len(os.sched_getaffinity(0))
        return 0 if accelerator == "cpu" else min(MAX_WORKERS, max(1, cores // local_ranks))

    @property
    def pixel_limit(self) -> PixelLimit:
        """Return `max_pixels` with its name, for errors."""
        return PixelLimit(self.max_pixels, "reader.max_pixels")

    @property
    def limits(self) -> BadSampleLimits:
        """Return the limits of bad samples alone. Raises VirtueError for one below 0."""
        return BadSampleLimits(self.max_bad_samples, self.max_consecutive_bad)


@dataclass(frozen=True)
class SamplingOptions:
    """Options of drawing training samples from one dataset.

    Example:
        >>> SamplingOptions(num_negatives=4, sample_buffer=1).shuffle_buffer
        1000
    """

    num_negatives: int = 0
    """Hard negatives of a sample, drawn anew each time it is seen."""
    negatives_required: bool = True
    """A sample with fewer hard negatives is an error; false: it gives those that it has."""
    train_rows: int | None = None
    """Only the first images of `train`, as many as have at most so many rows; default all."""
    steps_per_epoch: int | None = None
    """Training steps of an epoch; default as many as go into the rows once."""
    shuffle_buffer: int = 1000
    """Images that are shuffled among each other, after the shards were; it costs no memory, but as many shards as
    hold so many images are read side by side.
    """
    sample_buffer: int = 256
    """Samples that are then shuffled among each other; 1 keeps the rows of an image in one batch, where it is read and
    encoded once and they are each other's negatives.
    """
    distinct: bool = True
    """No sample is twice in a batch, and of samples with an equal target all but one wait for the next; false cuts
    batches in the order in which samples come, as the paper's training does.
    """

    def __post_init__(self) -> None:
        check_counts({"train_rows": self.train_rows, "steps_per_epoch": self.steps_per_epoch})
        check_counts({"shuffle_buffer": self.shuffle_buffer, "sample_buffer": self.sample_buffer})
        check_counts({"num_negatives": self.num_negatives}, minimum=0)
