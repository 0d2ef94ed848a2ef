"""The datasets of MMEB and SCaR, as data: `mmeb_tasks.csv` and `scar_sets.csv`."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class MMEBSet(NamedTuple):
    """A dataset of MMEB (or MMEB-mini).

    distribution: "IND" for what MMEB-train has, "OOD" for what is only evaluated, "" for MMEB-mini. train_folder,
    eval_folder: what the
    published repositories call it; "" where they lack it. wording: how the published evaluation joins instruction and
    text where
    they are apart. query_newlines: how many line breaks end a query of wording "image_t2i".
    """

    task: str
    meta_task: str
    distribution: str = ""
    train_folder: str = ""
    eval_folder: str = ""
    wording: str = ""
    query_newlines: int = 1


class SCaRSet(NamedTuple):
    """A dataset of SCaR: its parquet files without their endings, and the folders of its images."""

    task: str
    train_file: str
    eval_file: str
    train_images: str
    eval_images: str


@cache
def mmeb_sets() -> dict[str, MMEBSet]:
    """By name, with "_" for "-"."""
    rows = [(row, int(row.pop("query_newlines") or 1)) for row in _table("mmeb_tasks.csv")]
    return {row["task"]: MMEBSet(**row, query_newlines=newlines) for row, newlines in rows}


@cache
def scar_sets() -> dict[str, SCaRSet]:
    return {row["task"]: SCaRSet(**row) for row in _table("scar_sets.csv")}


def task_name(dataset: str) -> str:
    """An MMEB dataset's name in the table; MMEB spells "ImageNet-1K" with "_" in training."""
    return dataset.replace("-", "_")


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()))
