"""A library of the fetched photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from virtue_pl.data.scenes import catalogue
from virtue_pl.data.scenes.library import LONGEST, Background, Photograph, SceneLibrary, Thing, trim
from virtue_pl.types import VirtueError

CUTOUT_SCALE, BACKGROUND_SCALE = 1.25 * LONGEST, 1.7
"""Sizes at which images are kept, as shares of a scene's width: a cut-out's longest side, a background's shortest."""

Entry = TypeVar("Entry", catalogue.ObjectEntry, catalogue.BackgroundEntry)


def stamp_contents(folder: Path) -> list[str]:
    """Return the entries that `load_stamps` would load, with names and checksums.

    Raises VirtueError where nothing was fetched.
    """
    if not folder.is_dir():
        raise VirtueError(
            f"no images in {folder}: run `virtue-pl fetch images`, change --cache, or use --source shapes"
        )
    things, photographs = _present(folder, catalogue.objects())[0], _present(folder, catalogue.backgrounds())[0]
    return ["|".join(astuple(entry)) for entry in things] + ["|".join(astuple(entry)) for entry in photographs]


def load_stamps(folder: Path, image_size: int) -> SceneLibrary:
    """Return the images that `fetch_images` left in `folder`, at the size that scenes of `image_size` pixels need."""
    found, missing = _present(folder, catalogue.objects())
    photographs, missing_photographs = _present(folder, catalogue.backgrounds())
    things = [
        Thing(
            name,
            entries[0].kind,
            entries[0].split,
            tuple(_cutout(folder / entry.path, image_size) for entry in entries),
            entries[0].category,
        )
        for name, entries in _grouped(found, lambda entry: entry.name).items()
    ]
    backgrounds = [
        Background(
            phrase,
            entries[0].kind,
            tuple(
                Photograph(entry.path, entry.split, _background(folder / entry.path, image_size)) for entry in entries
            ),
        )
        for phrase, entries in _grouped(photographs, lambda entry: entry.phrase).items()
    ]
    return SceneLibrary(things, backgrounds, catalogue.LICENCES, [*missing, *missing_photographs]).check()


def _present(folder: Path, entries: Iterable[Entry]) -> tuple[list[Entry], list[str]]:
    found: list[Entry] = []
    missing: list[str] = []
    for entry in entries:
        if (folder / entry.path).is_file():
            found.append(entry)
        else:
            missing.append(entry.path)
    return found, missing


def _grouped(entries: Iterable[Entry], key: Callable[[Any], str]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _cutout(path: Path, image_size: int) -> Image.Image:
    with Image.open(path) as image:
        cutout = trim(image.convert("RGBA"))
    longest = round(CUTOUT_SCALE * image_size)
    cutout.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return cutout


def _background(path: Path, image_size: int) -> Image.Image:
    shortest = round(BACKGROUND_SCALE * image_size)
    with Image.open(path) as image:
        image.draft("RGB", (2 * shortest, 2 * shortest))
        scale = shortest / min(image.size)
        background = image.convert("RGB")
    if scale >= 1:
        return background
    return background.resize((round(background.width * scale), round(background.height * scale)), Image.Resampling.BOX)
