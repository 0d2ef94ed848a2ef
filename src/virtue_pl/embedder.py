"""The Python face: texts, images and visual prompts in, unit vectors out."""

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
from virtue_pl.features.frozen import RecentFeatures
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.images import pixel_key, to_image
from virtue_pl.preprocessing.input_formatters import InputFormatter
from virtue_pl.types import EmbeddingInput, EncoderBatch, ImageFeatures, VirtueError, VisualPrompt

CHARACTERS_A_TOKEN, PIXELS_A_TOKEN = 4, 28 * 28
"""Roughly, for putting rows of one length together; nothing else depends on them."""


class Embedder:
    """Encoder of texts, images and visual prompts, which sorts rows by length and encodes them in batches.

    The image towers run once for each distinct image, told by its pixels: the next prompt on a cached image costs only
    what depends on the prompt.

    Args:
        model: in eval mode, as `from_pretrained` gives it; it moves to `device`.
        device: "auto" takes a GPU where there is one.
        batch_size: rows of a batch.
        cached_images: images whose frozen features are cached, on the device.

    Example:
        >>> embedder = Embedder.from_pretrained("exported")
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
        self.recent = RecentFeatures(cached_images)

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
            dtype: of matrices and their products, float32, bfloat16 or float16; norms, positions and embeddings are
                float32.
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
        embeddings = self.embed(rows(texts, images, prompts), batch_size, progress)
        return embeddings if as_tensor else embeddings.numpy()

    def embed(
        self, items: Sequence[EmbeddingInput], batch_size: int | None = None, progress: bool = False
    ) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of inputs, on the CPU, in order; equal inputs are encoded once.

        Images without keys are told apart by their pixels.
        """
        items = [add_image_keys(item) for item in items]
        keys = [row_key(item) for item in items]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        distinct = [items[row] for row in first.values()]
        found = torch.empty(len(distinct), self.embed_dim)
        batches = list(self.batches(distinct, batch_size or self.batch_size))
        for chosen in track_progress(batches, progress):
            found[chosen] = self.encode_batch([distinct[row] for row in chosen])
        numbers = {key: number for number, key in enumerate(first)}
        embeddings = found[[numbers[key] for key in keys]]
        broken = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise VirtueError(
                f"row {broken[0]} has an embedding that is not finite, expected numbers: was the model trained well,"
                " and is `dtype` bfloat16 enough?"
            )
        return embeddings

    def batches(self, items: Sequence[EmbeddingInput], size: int) -> Iterator[list[int]]:
        """Yield the rows of each batch, of like length, longest first; rows on the same images follow each other."""
        lengths = [self.length(item) for item in items]
        longest: dict[tuple[str, ...], float] = {}
        for item, length in zip(items, lengths, strict=True):
            longest[item.image_keys] = max(length, longest.get(item.image_keys, 0))
        order = sorted(
            range(len(items)),
            key=lambda row: (longest[items[row].image_keys], items[row].image_keys, lengths[row]),
            reverse=True,
        )
        yield from (order[start : start + size] for start in range(0, len(order), size))

    def length(self, item: EmbeddingInput) -> float:
        """Return about how many tokens a row has."""
        resized = self.collator.processor.resized
        sizes = [resized((image.shape[1], image.shape[2])) for image in item.images]
        return len(item.text) / CHARACTERS_A_TOKEN + sum(height * width for height, width in sizes) / PIXELS_A_TOKEN

    @torch.no_grad()
    def encode_batch(self, items: Sequence[EmbeddingInput]) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of one batch of inputs whose images have keys, on the CPU."""
        with self.arithmetic():
            embeddings = self.model.encode(self.prepare_batch(items))
        return normalize(embeddings.float(), dim=-1).cpu()

    @torch.no_grad()
    def masks(self, items: Sequence[EmbeddingInput]) -> list[Bool[Tensor, "height width"]] | None:
        """Return the segmentation model's mask for each input's prompt; None where it predicts no masks.

        Inputs have one image with one prompt each, and are encoded in one batch. A mask covers the whole image.
        """
        if not isinstance(self.model, Virtue):
            return None
        with self.arithmetic():
            logits = self.model.segment(self.prepare_batch([add_image_keys(item) for item in items])).mask_logits
        return None if logits is None else list((logits > 0).cpu())

    def arithmetic(self) -> torch.autocast:
        """Return the autocast of the embedder's dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prepare_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Return inputs whose images have keys as a batch on the device, with its images' frozen features.

        Each input is prepared once; the cache is read, and written, once for each distinct image.
        """
        batch = self.collator.encoder_batch(items, self.recent.get).to(self.device)
        if not len(batch.images):
            return batch
        features = self.encode_images(batch)
        for key, each in zip(batch.images.keys, features, strict=True):
            self.recent.put(key, each)
        return replace(batch, images=replace(batch.images, features=features))

    def encode_images(self, batch: EncoderBatch) -> tuple[ImageFeatures, ...]:
        """Return the frozen features of each of a batch's images; the segmentation model reads prompted ones alone."""
        images = batch.images
        features = dict(enumerate(images.stored_features))
        prompted = sorted(set(batch.prompts.images.tolist())) if isinstance(self.model, Virtue) else list(features)
        plain = sorted(set(features).difference(prompted))
        missing = [number for number in prompted if not self.is_encoded(features[number])]
        if missing:
            features.update(zip(missing, self.model.image_features(images.select(missing)), strict=True))
        missing = [number for number in plain if not features[number].vision]
        if missing and isinstance(self.model, Virtue):
            features.update(zip(missing, self.model.fusion.image_features(images.select(missing)), strict=True))
        return tuple(features[number] for number in range(len(images)))

    def is_encoded(self, features: ImageFeatures) -> bool:
        """Whether features hold all streams of the model."""
        return bool(features.vision and (features.segmentation or not isinstance(self.model, Virtue)))


def rows(texts: Any, images: Any, prompts: Any) -> list[EmbeddingInput]:
    """Return the inputs that the arguments of `Embedder.encode` stand for."""
    given = {"texts": texts, "images": images, "prompts": prompts}
    lists = {name: list(value) for name, value in given.items() if is_list(value)}
    counts = {len(values) for values in lists.values()}
    if len(counts) > 1:
        found = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
        raise VirtueError(f"encode was given {found}, expected as many of each, or one alone for all rows")
    count = counts.pop() if counts else 1
    once: dict[int, Any] = {}
    columns = [lists.get(name, [value] * count) for name, value in given.items()]
    return [
        row(number, text, image, prompt, once)
        for number, (text, image, prompt) in enumerate(zip(*columns, strict=True))
    ]


def is_list(value: Any) -> bool:
    """Whether a value is one entry a row: a list, a tuple, or images stacked in one array."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 4)


def row(number: int, text: str | None, images: Any, prompts: Any, once: dict[int, Any]) -> EmbeddingInput:
    """Return one input.

    once: the images read so far, by the identity of the object given, with that object to keep it alive.
    """
    given = [image for image in (images if is_list(images) else [images]) if image is not None]
    pointed = [prompt for prompt in (prompts if is_list(prompts) else [prompts]) if prompt is not None]
    if not text and not given:
        raise VirtueError(f"row {number} is empty, expected a text, an image, or both")
    if pointed and not given:
        raise VirtueError(
            f"row {number} has a visual prompt but no image to point at: give `images`, or leave its prompt out"
        )
    for found, wanted in [(text or "", str), *((prompt, VisualPrompt) for prompt in pointed)]:
        if not isinstance(found, wanted):
            raise VirtueError(
                f"row {number}: found {type(found).__name__}, expected {wanted.__name__}: prompts in pixels are made by"
                " VisualPrompt.from_pixels"
            )
    for image in given:
        if id(image) not in once:
            decoded = to_image(image, f"row {number}")
            once[id(image)] = image, decoded, pixel_key(decoded)
    decoded_images = [once[id(image)] for image in given]
    first, *further = pointed or [VisualPrompt()]
    return EmbeddingInput(
        text or "",
        tuple(p for _, p, _ in decoded_images),
        first,
        tuple(key for *_, key in decoded_images),
        (),
        tuple(further),
    )


def add_image_keys(item: EmbeddingInput) -> EmbeddingInput:
    """Return the input with a key for each of its images: those that it has, or else hashes of the pixels."""
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
