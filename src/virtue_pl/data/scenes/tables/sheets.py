"""The parquet files that a set of scenes is written as, each with its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from virtue_pl.data.scenes.compose import Cast, compose
from virtue_pl.data.scenes.config import SPLITS, SceneConfig
from virtue_pl.data.scenes.library import TEST, TRAIN, SceneLibrary
from virtue_pl.data.scenes.mmeb.studio import Studio
from virtue_pl.data.scenes.mmeb.tasks import TASKS, MMEBTask
from virtue_pl.data.scenes.tables import mmeb_rows, scar_rows
from virtue_pl.types import naming

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Sheet(ABC):
    """One parquet file and its images, made of drawings that depend on settings, sheet and number alone.

    Example:
        >>> for sheet in sheets_of(SceneConfig(source="shapes", train=10)):
        ...     print(sheet.name, sheet.rows)
        train 20
        val 300
        test_seen 700
        test_held_out 700
    """

    rows: int
    """Number of rows of the file."""
    rows_per_drawing: int
    """Number of rows that a drawing gives; the last one's may be cut."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return a name that no other sheet has."""

    @property
    @abstractmethod
    def parquet(self) -> str:
        """Return the path of the file, relative to the root."""

    @property
    @abstractmethod
    def images(self) -> str:
        """Return the folder of its images, relative to the root."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Return the schema of the file."""

    @abstractmethod
    def write(self, index: int, config: SceneConfig, library: SceneLibrary, out: Path) -> list[dict[str, Any]]:
        """Write the images of drawing `index`; return its rows."""

    @property
    def drawings(self) -> int:
        """Return the number of drawings."""
        return -(-self.rows // self.rows_per_drawing)


@dataclass(frozen=True)
class SCaRSheet(Sheet):
    """A split of SCaR-mini; a drawing is a scene.

    Example:
        >>> SCaRSheet(rows=7, rows_per_drawing=2, split="val").drawings
        4
    """

    split: str

    @property
    def name(self) -> str:
        return self.split

    @property
    def parquet(self) -> str:
        return scar_rows.parquet_path(self.split)

    @property
    def images(self) -> str:
        return f"images/mini_{self.split}"

    @property
    def schema(self) -> pa.Schema:
        return scar_rows.schema(self.split)

    def write(self, index: int, config: SceneConfig, library: SceneLibrary, out: Path) -> list[dict[str, Any]]:
        rng = np.random.default_rng([config.seed, SPLITS.index(self.split), index])
        scene = compose(rng, Cast.of(self.split, library), config.size, training=self.split == "train")
        save_jpeg(scene.image, out / "images" / scar_rows.image_path(self.split, index))
        return scar_rows.rows_of(scene, self.split, index)


@dataclass(frozen=True)
class MMEBSheet(Sheet):
    """A task of MMEB-mini in training or test; a drawing is a group of rows.

    Example:
        >>> MMEBSheet(rows=20, rows_per_drawing=TASKS[0].rows, task=TASKS[0], split="train").name
        'mmeb_train_ObjectMini'
    """

    task: MMEBTask
    split: str

    @property
    def name(self) -> str:
        return f"mmeb_{self.split}_{self.task.name}"

    @property
    def parquet(self) -> str:
        return mmeb_rows.parquet_path(self.task.name, self.split)

    @property
    def images(self) -> str:
        return f"images/{mmeb_rows.folder(self.task.name, self.split)}"

    @property
    def schema(self) -> pa.Schema:
        return mmeb_rows.schema(self.split)

    def write(self, index: int, config: SceneConfig, library: SceneLibrary, out: Path) -> list[dict[str, Any]]:
        rng = np.random.default_rng([config.seed, len(SPLITS) + TASKS.index(self.task), self.split == "test", index])
        group = self.task.draw(rng, Studio(library, config.size, TRAIN if self.split == "train" else TEST))
        folder = mmeb_rows.folder(self.task.name, self.split)
        paths = {name: f"{folder}/{index:07d}_{name}.jpg" for name in group.images}
        for name, image in group.images.items():
            save_jpeg(image, out / "images" / paths[name])
        return [mmeb_rows.row(question, paths, self.split) for question in group.questions]


def sheets_of(config: SceneConfig) -> list[Sheet]:
    """Return all the sheets of a set of scenes."""
    counts = {"train": config.mmeb_train, "test": config.mmeb_test}
    mmeb = [MMEBSheet(count, task.rows, task, split) for task in TASKS for split, count in counts.items() if count]
    return [*(SCaRSheet(config.samples(split), 2, split) for split in SPLITS), *mmeb]


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write an image as JPEG."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    with naming(path):
        path.write_bytes(buffer.getvalue())
