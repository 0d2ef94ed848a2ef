"""The hand-checked list of photographs: what each shows, in which split it is, where it comes from."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

LICENCES = {
    "tuxpaint-stamps-default": "GPL-2 as a whole; some images CC-BY-SA or GFDL, as their .txt files say",
    "mate-backgrounds": "GPL-2+",
    "plasma-workspace-wallpapers": "GPL-2+",
    "scikit-image": "free, mostly public domain or CC0; see its data/README.txt",
}
"""Packages that carry the images, with their licences."""

DEBIAN_PACKAGES = ("tuxpaint-stamps-default", "mate-backgrounds", "plasma-workspace-wallpapers")


@dataclass(frozen=True)
class ObjectEntry:
    """One cut-out photograph.

    name: a noun phrase with no article; images of one name share it and its split.
    kind: names of one kind could be said of one another, so they never meet in a scene or as each other's swap.
    split: `train` or `held_out`. path: inside the package. sha256: of the file's content.
    """

    name: str
    category: str
    kind: str
    split: str
    path: str
    sha256: str


@dataclass(frozen=True)
class BackgroundEntry:
    """One background photograph and the phrase for it.

    split: `train`, or `test` for a photograph that only the tests use; its phrase has other photographs in training.
    """

    phrase: str
    kind: str
    split: str
    package: str
    path: str
    sha256: str


def objects() -> tuple[ObjectEntry, ...]:
    return tuple(ObjectEntry(**row) for row in _rows("objects.csv"))


def backgrounds() -> tuple[BackgroundEntry, ...]:
    return tuple(BackgroundEntry(**row) for row in _rows("backgrounds.csv"))


def checksums() -> dict[str, str]:
    """SHA-256 of every listed image's content, by path."""
    return {entry.path: entry.sha256 for entries in (objects(), backgrounds()) for entry in entries}


def _rows(name: str) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines())
