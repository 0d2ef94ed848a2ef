"""The hand-checked list of photographs: their names, splits and origins."""

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

    Example:
        >>> objects()[0].split in ("train", "held_out")
        True
    """

    name: str
    """A noun phrase without an article; images of one name share it and its split."""
    category: str
    kind: str
    """Names of one kind could be said of one another, so they never meet in a scene or as each other's swap."""
    split: str
    """Either `train` or `held_out`."""
    path: str
    """Inside the package."""
    sha256: str
    """Of the file's content."""


@dataclass(frozen=True)
class BackgroundEntry:
    """One background photograph and the phrase for it.

    Example:
        >>> backgrounds()[0].split in ("train", "test")
        True
    """

    phrase: str
    kind: str
    split: str
    """Either `train`, or `test` for a photograph that only tests use; its phrase has other photographs in training."""
    package: str
    path: str
    sha256: str


def objects() -> tuple[ObjectEntry, ...]:
    """Return the listed cut-outs."""
    return tuple(ObjectEntry(**row) for row in _rows("objects.csv"))


def backgrounds() -> tuple[BackgroundEntry, ...]:
    """Return the listed background photographs."""
    return tuple(BackgroundEntry(**row) for row in _rows("backgrounds.csv"))


def checksums() -> dict[str, str]:
    """Return the SHA-256 of every listed image's content, by path."""
    return {entry.path: entry.sha256 for entries in (objects(), backgrounds()) for entry in entries}


def _rows(name: str) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines())
