"""The catalogue of MMEB's and SCaR's datasets: `mmeb_tasks.csv` and `scar_sets.csv`."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class MMEBSet(NamedTuple):
    """A dataset of MMEB or MMEB-mini.

    Example:
        >>> mmeb_sets()["CIRR"].meta_task
        'retrieval'
    """

    task: str
    meta_task: str
    distribution: str = ""
    """Either "IND" for a dataset of MMEB-train, "OOD" for one that is only evaluated, "" for MMEB-mini."""
    train_folder: str = ""
    """Its folder in the published training repository; "" where it is not there."""
    eval_folder: str = ""
    """Its folder in the published evaluation repository; "" where it is not there."""
    wording: str = ""
    """Name of the way in which the published evaluation joins an instruction and a text that are stored apart."""
    query_newlines: int = 1
    """Number of line breaks at the end of a query of wording "image_t2i"."""


class SCaRSet(NamedTuple):
    """A dataset of SCaR: its parquet files without their endings, and the folders of its images.

    Example:
        >>> scar_sets()["ADE20K"].train_file
        'SCAR_ADE20K'
    """

    task: str
    train_file: str
    eval_file: str
    train_images: str
    eval_images: str


@cache
def mmeb_sets() -> dict[str, MMEBSet]:
    """Return the datasets of MMEB and MMEB-mini by name, with "_" for "-"."""
    rows = [(row, int(row.pop("query_newlines") or 1)) for row in _table("mmeb_tasks.csv")]
    return {row["task"]: MMEBSet(**row, query_newlines=newlines) for row, newlines in rows}


@cache
def scar_sets() -> dict[str, SCaRSet]:
    """Return the datasets of SCaR by name."""
    return {row["task"]: SCaRSet(**row) for row in _table("scar_sets.csv")}


def task_name(dataset: str) -> str:
    """Return an MMEB dataset's name in the table; MMEB spells "ImageNet-1K" with "_" in training."""
    return dataset.replace("-", "_")


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()))
