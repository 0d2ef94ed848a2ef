"""The settings of a set of scenes; equal settings give equal files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virtue_pl.types import VirtueError

SOURCES = ("stamps", "shapes")
SPLITS = ("train", "val", "test_seen", "test_held_out")


@dataclass(frozen=True)
class SceneConfig:
    """Settings of `write_scenes`. Raises VirtueError for an impossible source, count or size.

    Example:
        >>> config = SceneConfig(source="shapes", train=100)
        >>> config.samples("train"), config.samples("test_seen")
        (200, 700)
    """

    source: str = "stamps"
    """`stamps`: cut-out photographs, fetched once. `shapes`: coloured shapes, drawn with no download."""
    train: int = 4000
    """Training scenes; each gives two samples."""
    val: int = 300
    """Validation samples, on objects and photographs of training."""
    test: int = 700
    """Samples in each of `test_seen` and `test_held_out`."""
    size: int = 256
    """Width and height of the square images, in pixels."""
    mmeb_train: int = 0
    """Training rows of each task of MMEB-mini; 0 writes none."""
    mmeb_test: int = 0
    """Test rows of each task of MMEB-mini; 0 writes none."""
    seed: int = 0
    """Scene i of a split depends on nothing but the seed, the split and i."""
    cache: str = "data/cache"
    """Folder of fetched images; it does not change the scenes."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise VirtueError(f"source {self.source!r}, expected one of {', '.join(SOURCES)}")
        for name in ("train", "val", "test", "mmeb_train", "mmeb_test"):
            if getattr(self, name) < 0:
                raise VirtueError(f"{name} {getattr(self, name)}, expected a count of 0 or more")
        if not 128 <= self.size <= 2048:
            raise VirtueError(f"size {self.size}, expected 128 to 2048 pixels")

    @property
    def images(self) -> Path:
        """Return the folder of fetched images."""
        return Path(self.cache) / "pictures"

    def samples(self, split: str) -> int:
        """Return the number of rows of `split`."""
        return {"train": 2 * self.train, "val": self.val}.get(split, self.test)
