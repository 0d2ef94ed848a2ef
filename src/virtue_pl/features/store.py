"""Stored features: what frozen networks see in each image, beside the shards that the images are in.

For every NAME.tar of a folder of shards there is FEATURES/NAME.safetensors, its tensors named KEY/STREAM/LEVEL by the
image's content
key; FEATURES is a folder in the folder of shards. FEATURES/features.json says what they were made with, and which
shards they cover.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from virtue_pl.types import NO_FEATURES, ImageFeatures, VirtueError

FORMAT = "virtue_pl features 1"
INDEX = "features.json"
INDEX_KEYS = {"images": "pictures"}
"""Fields of `FeatureIndex` that have another name in its file."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_OPEN = 64
"""How many files a reader keeps open; a stream reads from a few shards at a time."""


def features_path(folder: Path, shard: str) -> Path:
    """The file of a shard's features in the folder `folder` of stored features."""
    return folder / f"{shard.removesuffix('.tar')}.safetensors"


@dataclass(frozen=True)
class Making:
    """How features were made. streams: the fingerprint of each stream's frozen network. shards: of the folder's
    content. dtype: None for any.
    """

    dtype: str | None
    streams: Mapping[str, str]
    shards: str

    def differs(self, other: Making) -> str | None:
        """The first difference to `other`, in words; None where there is none."""
        for name in sorted({*self.streams, *other.streams}):
            found, expected = self.streams.get(name, "nothing"), other.streams.get(name, "nothing")
            if found != expected:
                return f"stream {name} of network {found[:12]}, expected {expected[:12]}"
        if other.dtype is not None and self.dtype != other.dtype:
            return f"dtype {self.dtype}, expected {other.dtype}"
        return (
            None
            if self.shards == other.shards
            else f"features of other shards ({self.shards[:12]}), expected of {other.shards[:12]}"
        )


def write_features(path: Path, images: Mapping[str, Mapping[str, Tensor]], making: Making, seconds: float) -> None:
    """One shard's file, under a temporary name and moved. images: by content key, tensors named STREAM/LEVEL
    (`named_tensors`).
    """
    about = {
        "format": FORMAT,
        "making": json.dumps(asdict(making)),
        "pictures": str(len(images)),
        "seconds": f"{seconds:.3f}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(
        {f"{key}/{name}": tensor for key, named in images.items() for name, tensor in named.items()}, temporary, about
    )
    os.replace(temporary, path)


def named_tensors(features: ImageFeatures, dtype: str) -> dict[str, Tensor]:
    """STREAM/LEVEL -> tensor, as it is stored. Raises VirtueError where `dtype` cannot hold a value."""
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


def read_about(path: Path) -> tuple[Making, int, float]:
    """How a shard's file was made, how many images it holds and the seconds that they took. Raises VirtueError for
    another file.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
        return Making(**json.loads(about["making"])), int(about["pictures"]), float(about["seconds"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise VirtueError(
            f"features: {path} is no file of stored features ({error!r}): delete it, and run `lightning predict` again"
        ) from error


def is_stored(path: Path, making: Making) -> bool:
    """Whether a shard's features are there. Raises VirtueError if they were made otherwise."""
    if not path.is_file():
        return False
    difference = read_about(path)[0].differs(making)
    if difference is not None:
        raise VirtueError(
            f"features: {path} holds {difference}: delete the folder {path.parent}, or change data.init_args.features"
        )
    return True


@dataclass(frozen=True)
class FeatureIndex:
    """What a folder of stored features holds: how it was made, the tars it covers, and what it cost."""

    dtype: str | None
    streams: Mapping[str, str]
    shards: str
    tars: tuple[str, ...]
    images: int
    bytes: int
    seconds: float
    finished: bool = True
    format: str = FORMAT

    @classmethod
    def of(cls, folder: Path, making: Making) -> FeatureIndex:
        """Of all files that are in the folder."""
        paths = sorted(folder.glob("[!.]*.safetensors"))
        about = [read_about(path) for path in paths if is_stored(path, making)]
        size, seconds = sum(path.stat().st_size for path in paths), round(sum(seconds for *_, seconds in about), 1)
        return cls(
            **asdict(making),
            tars=tuple(f"{path.stem}.tar" for path in paths),
            images=sum(n for _, n, _ in about),
            bytes=size,
            seconds=seconds,
        )

    def write(self, folder: Path) -> None:
        temporary = folder / f".{INDEX}.{os.getpid()}"
        content = {INDEX_KEYS.get(name, name): value for name, value in asdict(self).items()}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / INDEX)

    @classmethod
    def read(cls, folder: Path) -> FeatureIndex:
        """Raises VirtueError where nothing was stored, or not to the end."""
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
                f"features: {folder / INDEX} is of format {index.format!r}, expected {FORMAT!r}: delete {folder} and"
                " store them again"
            )
        return index

    def check(self, folder: Path, fingerprints: Mapping[str, str]) -> tuple[str, ...]:
        """The streams that are stored of what the model with these fingerprints has. Raises VirtueError if another
        network made one, or for none.
        """
        shared = tuple(stream for stream in fingerprints if stream in self.streams)
        for stream in shared:
            if self.streams[stream] != fingerprints[stream]:
                raise VirtueError(
                    f"features: {folder} holds stream {stream} of network {self.streams[stream][:12]}, the model's is"
                    f" {fingerprints[stream][:12]}: store them again in another folder, or set data.init_args.features"
                    " to null"
                )
        if fingerprints and not shared:
            found, expected = ", ".join(self.streams), ", ".join(fingerprints)
            raise VirtueError(
                f"features: {folder} holds stream {found}, the model has {expected}: set data.init_args.features to"
                " null"
            )
        return shared

    def check_shards(self, folder: Path, fingerprint: str, tars: Collection[str]) -> None:
        """Raises VirtueError if they are of other shards than those with this fingerprint, or do not cover all of
        `tars`.
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
    """Reads the stored features of one folder, lazily; files stay open, in each process its own.

    Args:
        folder: of stored features.
        streams: which to read.
    """

    def __init__(self, folder: Path, streams: Iterable[str]) -> None:
        self.folder = folder
        self.streams = tuple(streams)
        self._open: OrderedDict[str, tuple[Any, frozenset[str]]] = OrderedDict()

    def of(self, shard: str, key: str) -> ImageFeatures:
        """Of the image with that content key in the tar `shard`; unknown where nothing is stored of it."""
        file, names = self._opened(shard)
        levels: dict[str, tuple[Tensor, ...]] = {}
        for stream in self.streams:
            wanted = takewhile(names.__contains__, (f"{key}/{stream}/{level}" for level in count()))
            # a copy: a view would take the whole file along
            levels[stream] = tuple(file.get_tensor(name).clone() for name in wanted)
        return ImageFeatures(**levels) if any(levels.values()) else NO_FEATURES

    def _opened(self, shard: str) -> tuple[Any, frozenset[str]]:
        if shard not in self._open:
            file = safe_open(features_path(self.folder, shard), "pt")
            self._open[shard] = file, frozenset(file.keys())
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}
