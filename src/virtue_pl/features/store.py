"""Stored features: frozen networks' outputs for each image, beside the shards that hold the images.

For every NAME.tar of a folder of shards there is FEATURES/NAME.safetensors, whose tensors are named KEY/STREAM/LEVEL by
the image's content key; FEATURES is a folder in the folder of shards. FEATURES/features.json says how they were made,
and which shards they cover.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from virtue_pl.features.shard_file import FeatureFileWriter
from virtue_pl.types import NO_FEATURES, ImageFeatures, VirtueError, replace_whole

FORMAT_NAME = "virtue_pl features "
FORMAT = f"{FORMAT_NAME}2"
"""Raised with the fields of `FeatureProvenance`; files of another format are computed again."""
INDEX = "features.json"
INDEX_KEYS = {"images": "pictures"}
"""Maps fields of `FeatureIndex` to their keys in its file, where these differ."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_OPEN = 64
"""Limits the files that a reader keeps open; a stream reads from a few shards at a time."""


def features_path(folder: Path, shard: str) -> Path:
    """Return the path of a shard's features in the folder `folder` of stored features."""
    return folder / f"{shard.removesuffix('.tar')}.safetensors"


@dataclass(frozen=True)
class FeatureProvenance:
    """Provenance of features, by which stored ones are accepted or refused.

    dtype: the dtype that they are stored in; None accepts any. streams: for each stream, the fingerprint of its frozen
    network. shards: the fingerprint of the content of the folder of shards. precision: the trainer's that they were
    computed in; None accepts any.

    Example:
        >>> stored = FeatureProvenance("float32", {"vision": "0a1b"}, shards="2c3d")
        >>> stored.difference_to(FeatureProvenance(None, {"vision": "ffff"}, shards="2c3d"))
        'stream vision of network 0a1b, expected ffff'
    """

    dtype: str | None
    streams: Mapping[str, str]
    shards: str
    precision: str | None = None

    def difference_to(self, expected: FeatureProvenance) -> str | None:
        """Return the first difference to the expected provenance in words; None where there is none."""
        for name in sorted({*self.streams, *expected.streams}):
            stored, needed = self.streams.get(name, "nothing"), expected.streams.get(name, "nothing")
            if stored != needed:
                return f"stream {name} of network {stored[:12]}, expected {needed[:12]}"
        for name in ("dtype", "precision"):
            found, wanted = getattr(self, name), getattr(expected, name)
            if wanted is not None and found != wanted:
                return f"{name} {found}, expected {wanted}"
        if self.shards != expected.shards:
            return f"features of other shards ({self.shards[:12]}), expected of {expected.shards[:12]}"
        return None


def write_features(
    path: Path, images: Mapping[str, Mapping[str, Tensor]], provenance: FeatureProvenance, seconds: float
) -> None:
    """Write one shard's file, under a temporary name that is then replaced.

    Args:
        path: the file (`features_path`).
        images: for each content key, its tensors by STREAM/LEVEL (`to_named_tensors`).
        provenance: how they were made.
        seconds: the time that encoding took.
    """
    writer = FeatureFileWriter(path)
    for key, named in images.items():
        writer.add(key, named)
    writer.save(file_metadata(path, len(images), provenance, seconds))


def file_metadata(path: Path, images: int, provenance: FeatureProvenance, seconds: float) -> dict[str, str]:
    """Return what a shard's file says of itself: its name and number of images, how they were made, and the time."""
    making = json.dumps(asdict(provenance))
    about = {"format": FORMAT, "shard": path.stem, "making": making}
    return {**about, "pictures": str(images), "seconds": f"{seconds:.3f}"}


def to_named_tensors(features: ImageFeatures, dtype: str) -> dict[str, Tensor]:
    """Return an image's tensors by STREAM/LEVEL. Raises VirtueError for a value that `dtype` cannot hold."""
    named = {}
    for stream in fields(ImageFeatures):
        for level, tensor in enumerate(getattr(features, stream.name)):
            stored = tensor.detach().to("cpu", DTYPES[dtype], copy=True).contiguous()
            if not stored.isfinite().all():
                raise VirtueError(
                    f"stream {stream.name}: a feature is too large for dtype {dtype}; set FeatureWriter.dtype to"
                    " bfloat16 or float32"
                )
            named[f"{stream.name}/{level}"] = stored
    return named


def read_metadata(path: Path) -> tuple[FeatureProvenance, int, float]:
    """Return how a shard's file was made, its number of images and the seconds that encoding them took.

    Raises VirtueError for another file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata["format"] != FORMAT:
            raise KeyError(metadata["format"])
        if metadata.get("shard", path.stem) != path.stem:
            raise ValueError(f"features of {metadata['shard']}")
        provenance = FeatureProvenance(**json.loads(metadata["making"]))
        return provenance, int(metadata["pictures"]), float(metadata["seconds"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise VirtueError(
            f"features: {path} is no file of stored features ({error!r}): delete it, and run `lightning predict` again"
        ) from error


def is_outdated(path: Path) -> bool:
    """Return whether a shard's file is one of stored features in another format, which are computed again."""
    try:
        with safe_open(path, "pt") as file:
            found = str((file.metadata() or {}).get("format"))
    except (OSError, SafetensorError):  # absent, or damaged: `read_metadata` says so
        return False
    return found.startswith(FORMAT_NAME) and found != FORMAT


def is_stored(path: Path, provenance: FeatureProvenance) -> bool:
    """Return whether a shard's file is there, of this format. Raises VirtueError if it was made in another way."""
    if not path.is_file() or is_outdated(path):
        return False
    difference = read_metadata(path)[0].difference_to(provenance)
    if difference is not None:
        raise VirtueError(
            f"features: {path} holds {difference}: delete the folder {path.parent}, or change data.init_args.features"
        )
    return True


@dataclass(frozen=True)
class FeatureIndex:
    """The contents of a folder of stored features: how they were made, the tars they cover, and their cost.

    dtype, streams, shards, precision: see `FeatureProvenance`. tars: the names of the shards with a file.
    images, bytes, seconds: totals. finished: whether all shards are covered.

    Example:
        >>> index = FeatureIndex("float16", {"vision": "0a1b"}, "2c3d", ("train-0000.tar",), 100, 2_000_000, 12.5)
        >>> index.check(Path("shards/features"), {"vision": "0a1b", "segmentation": "4e5f"})
        ('vision',)
    """

    dtype: str | None
    streams: Mapping[str, str]
    shards: str
    tars: tuple[str, ...]
    images: int
    bytes: int
    seconds: float
    finished: bool = True
    format: str = FORMAT
    precision: str | None = None

    @classmethod
    def from_files(cls, folder: Path, provenance: FeatureProvenance) -> FeatureIndex:
        """Return the index of all files in the folder. Raises VirtueError for one that was made in another way."""
        paths = [path for path in sorted(folder.glob("[!.]*.safetensors")) if is_stored(path, provenance)]
        metadata = [read_metadata(path) for path in paths]
        size, seconds = sum(path.stat().st_size for path in paths), round(sum(seconds for *_, seconds in metadata), 1)
        return cls(
            **asdict(provenance),
            tars=tuple(f"{path.stem}.tar" for path in paths),
            images=sum(count for _, count, _ in metadata),
            bytes=size,
            seconds=seconds,
        )

    def write(self, folder: Path) -> None:
        """Write the index into the folder, under a temporary name that is then replaced."""
        content = {INDEX_KEYS.get(name, name): value for name, value in asdict(self).items()}
        with replace_whole(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> FeatureIndex:
        """Return a folder's index. Raises VirtueError where nothing was stored, or not to the end."""
        if not (folder / INDEX).is_file():
            raise VirtueError(
                f"features: {folder} holds none ({INDEX} is not there): "
                "store them with configs/overlays/features/store_features.yaml, or set data.init_args.features to null"
            )
        try:
            content: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = {INDEX_KEYS.get(name, name): name for name in cls.__dataclass_fields__}
            index = cls(**{**{names[key]: value for key, value in content.items()}, "tars": tuple(content["tars"])})
        except (ValueError, KeyError, TypeError) as error:
            raise VirtueError(
                f"features: {folder / INDEX} is damaged ({error!r}): delete {folder} and store them again"
            ) from error
        if index.format != FORMAT or not index.finished:
            raise VirtueError(
                f"features: {folder / INDEX} is of format {index.format!r}, expected {FORMAT!r}: run `lightning"
                " predict` with configs/overlays/features/store_features.yaml again, or set data.init_args.features to"
                " null"
            )
        return index

    @property
    def provenance(self) -> FeatureProvenance:
        """Return how every file of the folder was made."""
        return FeatureProvenance(self.dtype, self.streams, self.shards, self.precision)

    def check(self, folder: Path, fingerprints: Mapping[str, str], precision: str | None = None) -> tuple[str, ...]:
        """Return which of the model's streams are stored.

        Raises VirtueError if another network made one, or in another precision, or if the model has streams and none of
        them is stored.

        Args:
            folder: of the stored features, for messages.
            fingerprints: of the model's streams (`Collator.fingerprints`).
            precision: the trainer's; None accepts any.
        """
        shared = tuple(stream for stream in fingerprints if stream in self.streams)
        for stream in shared:
            if self.streams[stream] != fingerprints[stream]:
                raise VirtueError(
                    f"features: {folder} holds stream {stream} of network {self.streams[stream][:12]}, the model's is"
                    f" {fingerprints[stream][:12]} (other weights or settings, or another version of a library): store"
                    " them again in another folder, or set data.init_args.features to null"
                )
        if shared and precision is not None and self.precision not in (None, precision):
            raise VirtueError(
                f"features: {folder} was computed in precision {self.precision}, the trainer's is {precision}: set"
                " trainer.precision to it, store them again, or set data.init_args.features to null"
            )
        if fingerprints and not shared:
            found, expected = ", ".join(self.streams), ", ".join(fingerprints)
            raise VirtueError(
                f"features: {folder} holds stream {found}, the model has {expected}: set data.init_args.features to"
                " null"
            )
        return shared

    def check_shards(self, folder: Path, fingerprint: str, tars: Collection[str]) -> None:
        """Raise VirtueError if the features are of other shards, or do not cover all of `tars`.

        Args:
            folder: of the stored features, for messages.
            fingerprint: of the content of the folder of shards.
            tars: names of the shards that are to be read.
        """
        if self.shards != fingerprint:
            raise VirtueError(
                f"features: {folder} is of other shards ({self.shards[:12]}, expected {fingerprint[:12]}): delete it,"
                " and store them again"
            )
        missing = [tar for tar in tars if tar not in self.tars]
        if missing:
            raise VirtueError(
                f"features: {folder} lacks {len(missing)} of {len(tars)} shards, e.g. {missing[0]}: run `lightning"
                " predict` again to go on"
            )


class StoredFeatures:
    """A reader of one folder of stored features; files are opened as they are needed, and stay open in each process.

    Args:
        folder: of stored features.
        streams: which to read.
        provenance: how they must have been made, each file by its own word; None where that is not asked.

    Example:
        >>> stored = StoredFeatures(Path("shards/features"), ["vision"])  # doctest: +SKIP
        >>> features = stored.read("train-0000.tar", "0a1b2c")
    """

    def __init__(self, folder: Path, streams: Iterable[str], provenance: FeatureProvenance | None = None) -> None:
        self.folder = folder
        self.provenance = provenance
        self.streams = tuple(streams)
        self._open: OrderedDict[str, tuple[Any, frozenset[str]]] = OrderedDict()

    def read(self, shard: str, key: str) -> ImageFeatures:
        """Return the features of the image with that content key in the tar `shard`; `NO_FEATURES` for one without.

        Raises VirtueError where the shard's file is missing, damaged, or was made in another way.
        """
        file, names = self._open_shard(shard)
        levels: dict[str, tuple[Tensor, ...]] = {}
        for stream in self.streams:
            present = takewhile(names.__contains__, (f"{key}/{stream}/{level}" for level in count()))
            # a copy: a view would keep the whole file in memory
            levels[stream] = tuple(file.get_tensor(name).clone() for name in present)
        return ImageFeatures(**levels) if any(levels.values()) else NO_FEATURES

    def _open_shard(self, shard: str) -> tuple[Any, frozenset[str]]:
        if shard not in self._open:
            path = features_path(self.folder, shard)
            if self.provenance is not None and not is_stored(path, self.provenance):
                raise VirtueError(f"features: {path} is not there: run `lightning predict` again to store it")
            try:
                file = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise VirtueError(
                    f"features: {path} is no file of stored features ({error}): delete it, and run `lightning predict`"
                    " again"
                ) from error
            self._open[shard] = file, frozenset(file.keys())
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}
