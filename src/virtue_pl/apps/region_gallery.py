"""Galleries of named regions: SCaR's evaluation shards read image by image, and embedded in several ways at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import Record, Row, read_region
from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.retrieval.region_retrieval import RetrievalItems
from virtue_pl.preprocessing.contrastive_collator import content_id
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.preprocessing.input_formatters import CropFormatter
from virtue_pl.preprocessing.prompts import prompt_region
from virtue_pl.types import NO_FEATURES, EmbeddingInput, ImageFeatures, Region, VirtueError, VisualPrompt

Prompt = Literal["box", "point", "mask", "image", "crop"]
PROMPTS: tuple[Prompt, ...] = get_args(Prompt)
IMAGES_AT_ONCE = 16
"""Images whose items are embedded together."""


@dataclass(frozen=True)
class View:
    """A way to embed regions: how each is pointed at, and the text beside it.

    prompt: "box", "point" (a click that depends on the region alone) or "mask"; "crop" is its box cut out, as an image
    of its own, and "image" the whole image once, whatever its regions. Raises VirtueError for another one.

    Example:
        >>> View("point", "Find the same object.").of_regions
        True
    """

    prompt: Prompt = "box"
    text: str = ""

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise VirtueError(f"prompt {self.prompt!r}, expected one of {', '.join(PROMPTS)}")
        if not isinstance(self.text, str):
            raise VirtueError(f"text {self.text!r}, expected words")

    @property
    def of_regions(self) -> bool:
        """Return whether an item is a region, or else a whole image."""
        return self.prompt != "image"


@dataclass(frozen=True, eq=False)
class NamedRegion:
    """A region of an image with the name of the object in it. caption: the right one of its row.

    Example:
        >>> region = NamedRegion("mini/3", "owl", Region(torch.tensor([0.1, 0.2, 0.5, 0.6])), "an owl below a fox")
        >>> region.prompt("box").boxes.shape
        torch.Size([1, 4])
    """

    key: str
    name: str
    region: Region
    caption: str = ""

    def prompt(self, mode: str) -> VisualPrompt:
        """Return what points at the region; its click is the same each time."""
        return prompt_region(self.region, mode, torch.Generator().manual_seed(content_id(self.key)))


@dataclass(frozen=True, eq=False)
class GalleryImage:
    """An image with its named regions.

    set_name: of the folder that it is from. key: of its content. path: where it was when the shards were written.
    data: as it is stored.

    Example:
        >>> image = next(read_gallery({"seen": folder}))  # doctest: +SKIP
        >>> [region.name for region in image.regions]  # doctest: +SKIP
        ['beaver', 'caribou']
    """

    set_name: str
    key: str
    path: str
    data: bytes
    pixels: UInt8[Tensor, "3 height width"]
    regions: tuple[NamedRegion, ...]
    features: ImageFeatures = NO_FEATURES

    @property
    def id(self) -> str:
        """A name that no other image of the gallery has."""
        return f"{self.set_name} {self.key}"

    def items(self, view: View) -> Iterator[EmbeddingInput]:
        """Yield the image's inputs in a view: one for each region, or one for the whole image."""
        whole = EmbeddingInput(view.text, (self.pixels,), image_keys=(self.id,), features=(self.features,))
        if not view.of_regions:
            yield whole
            return
        for region in self.regions:
            prompt = region.prompt("box" if view.prompt == "crop" else view.prompt)
            item = replace(whole, prompt=prompt)
            yield CropFormatter().prepare(item) if view.prompt == "crop" else item


def open_gallery(folders: Mapping[str, str | Path]) -> dict[str, ShardFolder]:
    """Return folders of SCaR's evaluation shards by the names of the sets.

    Raises VirtueError where shards are missing, or are none of rankings.
    """
    found = {}
    for name, path in folders.items():
        folder = ShardFolder.open(path, f"gallery.{name}")
        if folder.manifest.kind != "rankings":
            raise VirtueError(
                f"gallery.{name}: {path} holds {folder.manifest.kind}, expected rankings (evaluation shards)"
            )
        found[name] = folder
    return found


def read_gallery(folders: Mapping[str, ShardFolder]) -> Iterator[GalleryImage]:
    """Yield the images of all sets, in the order of their shards.

    Raises VirtueError for a record that cannot be read, and for a region without a name.
    """
    for name, folder in folders.items():
        log = SkipLog(BadSampleLimits(max_bad_samples=0))
        for record in read_shards([{"url": str(path)} for path in folder.paths], folder, log):
            yield gallery_image(name, record)


def gallery_image(set_name: str, record: Record) -> GalleryImage:
    """Return a record as an image with its regions. Raises VirtueError for one without images or names."""
    if not record.data:
        raise VirtueError(f"{record.key} has no image, expected SCaR's evaluation shards")
    image = record.images(MAX_PIXELS)[0]
    regions = tuple(named_region(row, image.size) for row in record.rows)
    path = record.key.partition(" (")[2].removesuffix(")")
    return GalleryImage(set_name, image.content_key, path, image.data, image.image, regions)


def named_region(row: Row, size: tuple[int, int]) -> NamedRegion:
    """Return a row's region. Raises VirtueError for one without a name."""
    name = row.fields.get("category")
    if not isinstance(name, str) or not name:
        raise VirtueError(
            f"{row.key} has no `category`, expected the name of the object in its region: without names nothing says"
            " which regions are of the same object"
        )
    captions = row.fields.get("candidates") or [""]
    return NamedRegion(row.key, name, read_region(row, size), str(captions[0]))


def encode_views(
    embedders: Mapping[str, Embedder],
    images: Iterable[GalleryImage],
    views: Mapping[str, Sequence[View]],
    advance: Callable[[int], object] = lambda done: None,
) -> dict[tuple[str, View], Float[np.ndarray, "items dim"]]:
    """Return unit embeddings of all images by each embedder in each of its views, in the images' order.

    An image's towers run once for all embedders whose frozen networks are the same, whatever the views; those of its
    crops run for each embedder that has such a view. advance: is called with each number of images that are done.
    """
    parts: dict[tuple[str, View], list[Tensor]] = {(name, view): [] for name in embedders for view in views[name]}
    remaining = iter(images)
    while block := list(islice(remaining, IMAGES_AT_ONCE)):
        shared: dict[tuple[tuple[str, str], ...], list[GalleryImage]] = {}
        for name, embedder in embedders.items():
            networks = tuple(sorted(embedder.collator.fingerprints.items()))
            if networks not in shared:
                shared[networks] = with_features(embedder, block)
            items = [(view, item) for view in views[name] for image in shared[networks] for item in image.items(view)]
            vectors = embedder.embed([item for _, item in items])
            for view in views[name]:
                parts[name, view].append(vectors[[row for row, (its_view, _) in enumerate(items) if its_view == view]])
        advance(len(block))
    return {key: torch.cat(found).numpy() for key, found in parts.items() if found}


@torch.no_grad()
def with_features(embedder: Embedder, images: Sequence[GalleryImage]) -> list[GalleryImage]:
    """Return images with the features of the embedder's frozen networks."""
    whole = VisualPrompt(boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    items = [replace(next(image.items(View("image"))), prompt=whole) for image in images]
    with embedder.autocast():
        batch = embedder.prepare_batch(items)
    found = dict(zip(batch.images.keys, batch.images.features, strict=True))
    return [replace(image, features=found[image.id]) for image in images]


@dataclass(frozen=True)
class GalleryItem:
    """An item of a gallery without its pixels: a region, or an image as a whole.

    names: the object in the region; of an image those of its regions, and those that their captions speak of. region:
    its number in its image; None for a whole image.

    Example:
        >>> GalleryItem("seen", "0a1b", "a.jpg", frozenset({"owl"}), 0).region
        0
    """

    set_name: str
    image: str
    path: str
    names: frozenset[str]
    region: int | None = None
    box: tuple[float, float, float, float] | None = None


def describe_gallery(images: Iterable[GalleryImage]) -> tuple[list[GalleryItem], list[GalleryItem]]:
    """Return the regions of a gallery's images, and the whole images, in the order of `encode_views`."""
    regions: list[GalleryItem] = []
    wholes: list[tuple[GalleryItem, list[str]]] = []
    for image in images:
        about = image.set_name, image.id, image.path
        for number, each in enumerate(image.regions):
            box: tuple[float, float, float, float] = tuple(each.region.box.tolist())  # type: ignore[assignment]
            regions.append(GalleryItem(*about, frozenset({each.name}), number, box))
        names = frozenset(each.name for each in image.regions)
        wholes.append((GalleryItem(*about, names), [each.caption for each in image.regions]))
    spoken = spoken_names(frozenset(name for item in regions for name in item.names))
    return regions, [
        replace(item, names=item.names | {name for caption in captions for name in spoken(caption)})
        for item, captions in wholes
    ]


def spoken_names(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that gives the names which a caption speaks of, behind their articles; the longest of several.

    Example:
        >>> spoken_names(["rat", "rat snake"])("a rat snake to the left of a rat, on grass")
        ['rat snake', 'rat']
    """
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    pattern = re.compile(rf"\ban? ({'|'.join(map(re.escape, longest_first))})(?!\w)")
    return lambda caption: pattern.findall(caption)


def to_retrieval(items: Sequence[GalleryItem], vectors: Float[np.ndarray, "items dim"]) -> RetrievalItems:
    """Return items with their embeddings, as `score_retrieval` takes them."""
    return RetrievalItems(vectors, tuple(item.names for item in items), tuple(item.image for item in items))
