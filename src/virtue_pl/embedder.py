"""The Python interface for embedding: texts, images and visual prompts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from virtue_pl.checkpoints.pretrained import DTYPES, from_pretrained
from virtue_pl.features.frozen import FeatureCache
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.images import pixel_key, to_image
from virtue_pl.preprocessing.input_formatters import InputFormatter
from virtue_pl.types import EmbeddingInput, EncoderBatch, ImageFeatures, VirtueError, VisualPrompt

CHARACTERS_PER_TOKEN, PIXELS_PER_TOKEN = 4, 28 * 28
"""Rough sizes of a token, by which rows of similar length are batched together; nothing else depends on them."""


class Embedder:
    """An encoder of texts, images and visual prompts, which sorts rows by length and encodes them in batches.

    The image towers run once for each distinct image, recognised by its pixels: a further prompt on a cached image
    costs only the computation that depends on the prompt.

    Args:
        model: put into eval mode and moved to `device`.
        device: "auto" is a GPU where there is one.
        batch_size: rows of a batch.
        cached_images: the number of images whose frozen features are cached, on the device.

    Example:
        >>> embedder = Embedder.from_pretrained("exported")  # doctest: +SKIP
        >>> box = VisualPrompt.from_pixels(boxes=[[10, 20, 200, 240]], size=(480, 640))
        >>> embedder.encode("What is this?", "street.jpg", box).shape
        (1, 384)
    """

    def __init__(
        self,
        model: EmbeddingModel,
        device: str | torch.device = "auto",
        batch_size: int = 16,
        cached_images: int = 32,
    ) -> None:
        if batch_size < 1 or cached_images < 0:
            raise VirtueError(f"batch_size is {batch_size}, cached_images {cached_images}, expected at least 1 and 0")
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(automatic if device == "auto" else device)
        self.model = model.to(self.device).eval()
        self.dtype = next(parameter.dtype for parameter in model.parameters() if parameter.ndim > 1)
        collator = model.collator
        assert isinstance(collator, ContrastiveCollator)
        self.collator = collator
        self.batch_size = batch_size
        self.feature_cache = FeatureCache(cached_images)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        cached_images: int = 32,
        formatter: InputFormatter | str | None = None,
        sam_checkpoint: str | Path | None = None,
        base: str | Path | None = None,
        revision: str | None = None,
        allow_classes: Sequence[str] = (),
    ) -> Embedder:
        """Load an exported folder, a published release, a model of the hub by its name, or a run's checkpoint (.ckpt).

        Args:
            dtype: the dtype of matrices and their products, float32, bfloat16 or float16; norms, positions and
                embeddings are float32.
            others: see `Embedder` and `virtue_pl.checkpoints.pretrained.from_pretrained`.
        """
        if dtype not in DTYPES:
            raise VirtueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        model = from_pretrained(name, sam_checkpoint, formatter, base, "float32", revision, allow_classes)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(getattr(torch, dtype))
        return cls(model, device, batch_size, cached_images)

    @property
    def embed_dim(self) -> int:
        """The length of an embedding."""
        head = self.model.fusion if isinstance(self.model, Virtue) else self.model
        return int(head.hidden_size)  # type: ignore[arg-type]

    def encode(
        self,
        texts: str | Sequence[str] | None = None,
        images: Any = None,
        prompts: VisualPrompt | Sequence[VisualPrompt | Sequence[VisualPrompt] | None] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        as_tensor: bool = False,
    ) -> np.ndarray | Tensor:
        """Return unit float32 embeddings, [rows, embed_dim], in the order given.

        A list has one entry a row; a single value is shared by all rows: one image with three prompts gives three rows.

        Args:
            texts: the text of each row, with an image or alone; `IMAGE_TOKEN` may mark where an image stands.
            images: images (path, PIL, uint8 array or tensor, see `to_image`); None for a row without one, a list for
                a row with several.
            prompts: regions in each row's first image; None for none, a list for several regions of one row.
            batch_size: instead of the embedder's.
            progress: show a bar.
            as_tensor: return a tensor on the CPU rather than an array.

        Raises:
            VirtueError: lists of different lengths, a prompt without an image, an empty row, or a value that is not
                an image.
        """
        embeddings = self.embed(build_rows(texts, images, prompts), batch_size, progress)
        return embeddings if as_tensor else embeddings.numpy()

    def embed(
        self, items: Sequence[EmbeddingInput], batch_size: int | None = None, progress: bool = False
    ) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of inputs, on the CPU, in order; equal inputs are encoded once.

        Images without keys are distinguished by their pixels.
        """
        items = [add_image_keys(item) for item in items]
        keys = [row_key(item) for item in items]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        distinct = [items[row] for row in first.values()]
        encoded = torch.empty(len(distinct), self.embed_dim)
        batches = list(self.batches(distinct, batch_size or self.batch_size))
        for batch in track_progress(batches, progress):
            encoded[batch] = self.encode_batch([distinct[row] for row in batch])
        index = {key: position for position, key in enumerate(first)}
        embeddings = encoded[[index[key] for key in keys]]
        broken = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise VirtueError(
                f"row {broken[0]} has an embedding that is not finite, expected numbers: was the model trained well,"
                " and is `dtype` bfloat16 enough?"
            )
        return embeddings

    def batches(self, items: Sequence[EmbeddingInput], size: int) -> Iterator[list[int]]:
        """Yield the rows of each batch, of similar length, longest first; rows on the same images follow each other."""
        lengths = [self.estimate_length(item) for item in items]
        longest: dict[tuple[str, ...], float] = {}
        for item, length in zip(items, lengths, strict=True):
            longest[item.image_keys] = max(length, longest.get(item.image_keys, 0))
        order = sorted(
            range(len(items)),
            key=lambda row: (longest[items[row].image_keys], items[row].image_keys, lengths[row]),
            reverse=True,
        )
        yield from (order[start : start + size] for start in range(0, len(order), size))

    def estimate_length(self, item: EmbeddingInput) -> float:
        """Return roughly the number of tokens of a row."""
        resized_size = self.collator.processor.resized_size
        sizes = [resized_size((image.shape[1], image.shape[2])) for image in item.images]
        return len(item.text) / CHARACTERS_PER_TOKEN + sum(height * width for height, width in sizes) / PIXELS_PER_TOKEN

    @torch.no_grad()
    def encode_batch(self, items: Sequence[EmbeddingInput]) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of one batch of inputs whose images have keys, on the CPU."""
        with self.autocast():
            embeddings = self.model.encode(self.prepare_batch(items))
        return normalize(embeddings.float(), dim=-1).cpu()

    @torch.no_grad()
    def predict_masks(self, items: Sequence[EmbeddingInput]) -> list[Bool[Tensor, "height width"]] | None:
        """Return the segmentation model's mask for each input's prompt; None where it predicts no masks.

        Each input has one image with one prompt; all are encoded in one batch. A mask covers the whole image.
        """
        if not isinstance(self.model, Virtue):
            return None
        with self.autocast():
            logits = self.model.segment(self.prepare_batch([add_image_keys(item) for item in items])).mask_logits
        return None if logits is None else list((logits > 0).cpu())

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the embedder's dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prepare_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Return inputs whose images have keys as a batch on the device, with its images' frozen features.

        Each input is prepared once; the cache is read, and written, once for each distinct image.
        """
        batch = self.collator.encoder_batch(items, self.feature_cache.get).to(self.device)
        if not len(batch.images):
            return batch
        features = self.encode_images(batch)
        for key, each in zip(batch.images.keys, features, strict=True):
            self.feature_cache.put(key, each)
        return replace(batch, images=replace(batch.images, features=features))

    def encode_images(self, batch: EncoderBatch) -> tuple[ImageFeatures, ...]:
        """Return each image's frozen features, in order; the segmentation model encodes prompted images alone."""
        images = batch.images
        features = dict(enumerate(images.stored_features))
        prompted = sorted(set(batch.prompts.image_index.tolist())) if isinstance(self.model, Virtue) else list(features)
        plain = sorted(set(features).difference(prompted))
        missing = [number for number in prompted if not self.is_encoded(features[number])]
        if missing:
            features.update(zip(missing, self.model.image_features(images.select(missing)), strict=True))
        missing = [number for number in plain if not features[number].vision]
        if missing and isinstance(self.model, Virtue):
            features.update(zip(missing, self.model.fusion.image_features(images.select(missing)), strict=True))
        return tuple(features[number] for number in range(len(images)))

    def is_encoded(self, features: ImageFeatures) -> bool:
        """Return whether an image's features hold all streams of the model."""
        return bool(features.vision and (features.segmentation or not isinstance(self.model, Virtue)))


def build_rows(texts: Any, images: Any, prompts: Any) -> list[EmbeddingInput]:
    """Return one input a row for the arguments of `Embedder.encode`."""
    arguments = {"texts": texts, "images": images, "prompts": prompts}
    lists = {name: list(value) for name, value in arguments.items() if is_list(value)}
    counts = {len(values) for values in lists.values()}
    if len(counts) > 1:
        found = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
        raise VirtueError(f"encode was given {found}, expected as many of each, or one alone for all rows")
    count = counts.pop() if counts else 1
    decoded: dict[int, Any] = {}
    columns = [lists.get(name, [value] * count) for name, value in arguments.items()]
    return [
        build_row(number, text, image, prompt, decoded)
        for number, (text, image, prompt) in enumerate(zip(*columns, strict=True))
    ]


def is_list(value: Any) -> bool:
    """Return whether a value has one entry a row: a list, a tuple, or images stacked in one array."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 4)


def build_row(number: int, text: str | None, images: Any, prompts: Any, decoded: dict[int, Any]) -> EmbeddingInput:
    """Return one input. Raises VirtueError for an empty row, a prompt without an image, or values of another type.

    decoded: the images decoded so far, by the identity of the given object, which is stored to keep it alive.
    """
    images = [image for image in (images if is_list(images) else [images]) if image is not None]
    prompts = [prompt for prompt in (prompts if is_list(prompts) else [prompts]) if prompt is not None]
    check_row(number, text, images, prompts)
    for image in images:
        if id(image) not in decoded:
            pixels = to_image(image, f"row {number}")
            decoded[id(image)] = image, pixels, pixel_key(pixels)
    entries = [decoded[id(image)] for image in images]
    first, *further = prompts or [VisualPrompt()]
    pixels_of_all, keys = tuple(pixels for _, pixels, _ in entries), tuple(key for *_, key in entries)
    return EmbeddingInput(text or "", pixels_of_all, first, keys, (), tuple(further))


def check_row(number: int, text: str | None, images: list[Any], prompts: list[Any]) -> None:
    """Raise VirtueError for a row that is empty, has a prompt without an image, or values of another type."""
    if not text and not images:
        raise VirtueError(f"row {number} is empty, expected a text, an image, or both")
    if prompts and not images:
        raise VirtueError(
            f"row {number} has a visual prompt but no image to point at: give `images`, or leave its prompt out"
        )
    for value, expected in [(text or "", str), *((prompt, VisualPrompt) for prompt in prompts)]:
        if not isinstance(value, expected):
            raise VirtueError(
                f"row {number}: found {type(value).__name__}, expected {expected.__name__}: prompts in pixels are made"
                " by VisualPrompt.from_pixels"
            )


def add_image_keys(item: EmbeddingInput) -> EmbeddingInput:
    """Return the input with a key for each of its images: its own keys, or else hashes of the pixels."""
    if len(item.image_keys) == len(item.images):
        return item
    return replace(item, image_keys=tuple(pixel_key(image) for image in item.images))


def row_key(item: EmbeddingInput) -> tuple[Any, ...]:
    """Return a key that is equal for inputs of the same text, images and prompts."""
    parts = [
        (part.shape, part.numpy().tobytes())
        for p in item.prompts
        for part in (p.boxes, p.points, p.point_labels, p.masks)
    ]
    return (item.text, item.image_keys, *parts)


def track_progress(batches: Sequence[list[int]], progress: bool) -> Iterator[list[int]]:
    """Yield the batches, with a bar on stderr where `progress` is set."""
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, "embedding", console=Console(stderr=True), disable=not progress)
