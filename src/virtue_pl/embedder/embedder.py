"""The Python interface for embedding: texts, images and visual prompts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from virtue_pl.checkpoints.pretrained import DTYPES, from_pretrained
from virtue_pl.embedder.image_handle import ImageHandle
from virtue_pl.embedder.progress import track_progress
from virtue_pl.embedder.replicas import Device, Replicas, read_devices
from virtue_pl.embedder.row_batches import sort_into_batches
from virtue_pl.embedder.row_details import RowDetails, inspect_batch
from virtue_pl.embedder.row_keys import add_image_keys, is_plain, row_key, version_of
from virtue_pl.embedder.vectors import convert_vectors
from virtue_pl.engine.precision import precision_settings
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.features.frozen import FeatureCache
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.embedding_rows import (
    Columns,
    build_rows,
    check_prompt_sizes,
    decode_items,
    distinct_images,
)
from virtue_pl.preprocessing.image_sources import DecodedImages
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.preprocessing.input_formatters import InputFormatter
from virtue_pl.types import EmbeddingInput, EncoderBatch, ImageFeatures, VirtueError, VisualPrompt


class Embedder:
    """An encoder of texts, images and visual prompts, which sorts rows by length and encodes them in batches.

    The image towers run once for each distinct image, recognised by its pixels: a further prompt on a cached image
    costs only the computation that depends on the prompt.

    Args:
        model: put into eval mode and moved to `device`.
        device: "auto" is a GPU where there is one. A list, as ["cuda:0", "cuda:1"], has a copy of the model on each,
            and batches go to the next that is free.
        batch_size: rows of a batch.
        cached_images: the number of images whose frozen features are cached, on each device.
        max_pixels: larger images are refused from their header, before anything is decoded; 50_000_000 takes those of a
            phone with 48 megapixels. It is of paths and compressed bytes: pixels in memory are taken as they are.
        instructions: for "query" and "document", what stands before the texts of `encode_query`, `encode_document`.

    Example:
        >>> embedder = Embedder.from_pretrained("exported")  # doctest: +SKIP
        >>> box = VisualPrompt.from_pixels(boxes=[[10, 20, 200, 240]], size=(480, 640))
        >>> embedder.encode("What is this?", "street.jpg", box).shape
        (1, 384)
    """

    def __init__(
        self,
        model: EmbeddingModel,
        device: Device | Sequence[Device] = "auto",
        batch_size: int = 16,
        cached_images: int = 32,
        max_pixels: int = MAX_PIXELS,
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        if batch_size < 1 or cached_images < 0:
            raise VirtueError(f"batch_size is {batch_size}, cached_images {cached_images}, expected at least 1 and 0")
        if max_pixels < 1:
            raise VirtueError(f"max_pixels is {max_pixels}, expected at least 1")
        self.device, *further = read_devices(device)
        self.model = model.to(self.device).eval()
        self.dtype = next(parameter.dtype for parameter in model.parameters() if parameter.ndim > 1)
        collator = model.collator
        assert isinstance(collator, ContrastiveCollator)
        self.collator = collator
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.instructions = dict(instructions or {})
        self.feature_cache = FeatureCache(cached_images)
        self.replicas = Replicas(self, further) if further else None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: Device | Sequence[Device] = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        cached_images: int = 32,
        max_pixels: int = MAX_PIXELS,
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
        return cls(model, device, batch_size, cached_images, max_pixels)

    @property
    def num_devices(self) -> int:
        """The number of devices that encode batches."""
        return 1 if self.replicas is None else 1 + len(self.replicas.devices)

    @property
    def embed_dim(self) -> int:
        """The length of an embedding."""
        head = self.model.fusion if isinstance(self.model, Virtue) else self.model
        return int(head.hidden_size)  # type: ignore[arg-type]

    def encode(
        self,
        texts: str | Iterable[str | None] | None = None,
        images: Any = None,
        prompts: VisualPrompt | Iterable[VisualPrompt | Sequence[VisualPrompt] | None] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        as_tensor: bool = False,
        instruction: str = "",
        truncate_dim: int | None = None,
        unit: bool = True,
        precision: str = "float32",
        calibration: Any = None,
    ) -> np.ndarray | Tensor:
        """Return unit float32 embeddings, [rows, embed_dim], in the order given.

        A list has one entry a row; a single value is shared by all rows: one image with three prompts gives three rows.
        Rows of lists are sorted by length into batches. Where the images are more than a batch has rows, only the
        headers of files are read for that, and each image is decoded when its batch comes: their pixels never fill more
        than a batch. What is no image is found before anything is embedded; one that is cut off, when its batch comes.
        Any other iterable, such as a generator, is asked for the rows of one batch at a time, which are embedded before
        it is asked again.

        Args:
            texts: the text of each row, with an image or alone; `IMAGE_TOKEN` may mark where an image stands. Where
                there are no images beside it, a row may also be an image (a path as a `Path`), or a request: a mapping
                with the keys of `EmbeddingRequest`, whose regions may ask for a row each.
            images: images (path, PIL, uint8 array or tensor, see `to_image`); None for a row without one, a list for
                a row with several.
            prompts: regions in each row's first image; None for none, a list for several regions of one row.
            batch_size: instead of the embedder's.
            progress: show a bar.
            as_tensor: return a tensor on the CPU rather than an array.
            instruction: stands before the text of each row.
            truncate_dim, unit, precision, calibration: the form of the embeddings, see `convert_vectors`.

        Raises:
            VirtueError: columns of different lengths, a prompt without an image, an empty row, a value that is not an
                image, an image of more than `max_pixels`, a text that is the path of an image, or a prompt in pixels of
                an image whose height and width are exchanged; it names the row, and the image's path. Where it comes
                from an iterable, it says how many rows before it had been embedded.
        """
        size = self.check_batch_size(batch_size)
        found, start = [torch.empty(0, self.embed_dim)], 0
        columns = Columns(texts, images, prompts)
        try:
            for window in track_progress(columns.windows(size * self.num_devices), progress and columns.streamed):
                bar = progress and not columns.streamed
                found.append(self.encode_rows(window, size, bar, start, instruction))
                start += len(window)
        except VirtueError as error:
            if not start:
                raise
            raise VirtueError(f"{error}; {start:,} rows before it were embedded and are not returned") from error
        embeddings = convert_vectors(torch.cat(found), truncate_dim, unit, precision, calibration)
        if as_tensor:
            return torch.as_tensor(embeddings)
        return embeddings if isinstance(embeddings, np.ndarray) else embeddings.numpy()

    def encode_query(self, *columns: Any, instruction: str | None = None, **options: Any) -> np.ndarray | Tensor:
        """Return embeddings as `encode` does, behind `instructions["query"]` where no other instruction is given."""
        return self.encode(*columns, instruction=self.instruction("query", instruction), **options)

    def encode_document(self, *columns: Any, instruction: str | None = None, **options: Any) -> np.ndarray | Tensor:
        """Return embeddings as `encode` does, behind `instructions["document"]` where no other instruction is given."""
        return self.encode(*columns, instruction=self.instruction("document", instruction), **options)

    def instruction(self, role: str, instruction: str | None) -> str:
        """Return the instruction of a role, or another that is given in its place."""
        return self.instructions.get(role, "") if instruction is None else instruction

    def image(self, image: Any) -> ImageHandle:
        """Return a handle of an image, in any form that `encode` takes, whose further prompts cost only themselves."""
        (row,) = build_rows([(None, image, None)], self.max_pixels)
        if len(row.images) != 1:
            raise VirtueError(f"found {len(row.images)} images, expected one")
        (item,) = decode_items([row])
        return ImageHandle(self, item)

    def encode_rows(
        self, entries: Iterable[Sequence[Any]], batch_size: int, progress: bool, start: int, instruction: str = ""
    ) -> Float[Tensor, "rows dim"]:
        """Return embeddings of entries (text, images, prompts), of which row `start` is the first."""
        rows = build_rows(entries, self.max_pixels, start, instruction)
        images = DecodedImages(list(distinct_images(rows)), batch_size)
        return self.embed_items([row.to_input(images) for row in rows], images.load, batch_size, progress, start)

    def embed(
        self,
        items: Iterable[EmbeddingInput],
        batch_size: int | None = None,
        progress: bool = False,
        details: dict[Any, RowDetails] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of inputs, on the CPU, in order; equal inputs are encoded once.

        Images without keys are distinguished by their pixels. Inputs that are no list or tuple are taken one batch at a
        time, as `encode` does. details: gets those of each row of a list by `row_key`.
        """
        size = self.check_batch_size(batch_size)
        if isinstance(items, Sequence):
            return self.embed_items([add_image_keys(item) for item in items], list, size, progress, details=details)
        found, remaining, start = [torch.empty(0, self.embed_dim)], iter(items), 0
        window_rows = size * self.num_devices
        for window in track_progress(iter(lambda: list(islice(remaining, window_rows)), []), progress):
            found.append(self.embed_items([add_image_keys(item) for item in window], list, size, False, start))
            start += len(window)
        return torch.cat(found)

    def embed_items(
        self,
        items: Sequence[EmbeddingInput],
        load: Callable[[Sequence[EmbeddingInput]], list[EmbeddingInput]],
        batch_size: int,
        progress: bool = False,
        start: int = 0,
        details: dict[Any, RowDetails] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Return embeddings of inputs whose images have keys.

        Args:
            items: inputs; of their images only the shapes are read.
            load: returns the inputs of a batch with their pixels.
            batch_size: rows of a batch.
            progress: show a bar.
            start: the number of the first row, for messages.
            details: gets those of each row by `row_key`.
        """
        check_prompt_sizes(items, start)
        self.check_rows(items, start)
        keys = [row_key(item) for item in items]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        distinct = [items[row] for row in first.values()]
        encoded = torch.empty(len(distinct), self.embed_dim)
        batches = list(sort_into_batches(distinct, batch_size, self.collator.resized_size))

        def read(batch: list[int]) -> list[EmbeddingInput]:
            return load([distinct[row] for row in batch])

        for number, found in track_progress(self.encode_batches(batches, read, details), progress, len(batches)):
            encoded[batches[number]] = found
        index = {key: position for position, key in enumerate(first)}
        embeddings = encoded[[index[key] for key in keys]]
        broken = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise VirtueError(
                f"row {start + broken[0]} has an embedding that is not finite, expected numbers: was the model trained"
                " well, and is `dtype` bfloat16 enough?"
            )
        return embeddings

    def encode_batches(
        self,
        batches: Sequence[list[int]],
        load: Callable[[list[int]], list[EmbeddingInput]],
        details: dict[Any, RowDetails] | None = None,
    ) -> Iterator[tuple[int, Float[Tensor, "rows dim"]]]:
        """Return the number and the embeddings of each batch: in order on one device, as they are done on several.

        load: returns a batch with its pixels. details: of rows, are those of one device.
        """
        if self.replicas is not None and details is None and len(batches) > 1:
            return self.replicas.encode(batches, load)
        return ((number, self.encode_batch(load(batch), details)) for number, batch in enumerate(batches))

    def check_rows(self, items: Sequence[EmbeddingInput], start: int = 0) -> None:
        """Raise VirtueError, which names the row, for an input that the model's processor cannot read."""
        for number, item in enumerate(items, start):
            try:
                self.collator.check_input(item)
            except VirtueError as error:
                raise VirtueError(f"row {number}: {error}") from error

    def check_batch_size(self, batch_size: int | None) -> int:
        """Return the rows of a batch. Raises VirtueError for fewer than one."""
        if batch_size is not None and batch_size < 1:
            raise VirtueError(f"batch_size is {batch_size}, expected at least 1")
        return batch_size or self.batch_size

    @torch.no_grad()
    def encode_batch(
        self, items: Sequence[EmbeddingInput], details: dict[Any, RowDetails] | None = None
    ) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of one batch of inputs whose images have keys, on the CPU."""
        with self.autocast():
            batch = self.prepare_batch(items)
            if details is not None:
                batch, found = inspect_batch(self.model, batch)
                details.update(zip(map(row_key, items), found, strict=True))
            embeddings = self.model.encode(batch)
        return normalize(embeddings.float(), dim=-1).cpu()

    def predict_masks(self, items: Sequence[EmbeddingInput]) -> list[Bool[Tensor, "height width"]] | None:
        """Return the segmentation model's mask for each input's prompt; None where it predicts no masks.

        Each input has one image with one prompt; all are encoded in one batch. A mask covers the whole image.
        """
        logits = self.predict_mask_logits(items)
        return None if logits is None else list(logits > 0)

    @torch.no_grad()
    def predict_mask_logits(self, items: Sequence[EmbeddingInput]) -> Float[Tensor, "items height width"] | None:
        """Return the logits of the masks that `predict_masks` returns, on the CPU."""
        if not isinstance(self.model, Virtue):
            return None
        check_prompt_sizes(items)
        with self.autocast():
            logits = self.model.segment(self.prepare_batch([add_image_keys(item) for item in items])).mask_logits
        return None if logits is None else logits.float().cpu()

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the embedder's dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prepare_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Return inputs whose images have keys as a batch on the device, with its images' frozen features.

        Each input is prepared once; the cache is read, and written, once for each distinct image.
        """
        self.feature_cache.keep_for(self.feature_state())
        batch = self.collator.encoder_batch(items, self.feature_cache.get).to(self.device)
        if not len(batch.images):
            return batch
        features = self.encode_images(batch)
        for key, each in zip(batch.images.keys, features, strict=True):
            self.feature_cache.put(key, each)
        return batch.with_images(replace(batch.images, features=features))

    def fingerprint(self) -> str:
        """Return a hash of all that an embedding depends on beside its input: model, formatter, precision, versions."""
        return fingerprint_of(self.model, self.collator.formatter, precision_settings(str(self.dtype)))

    def feature_state(self) -> list[Any]:
        """Return what cached features depend on, cheaply: each tensor's version, how images are prepared, and rounding.

        A tensor that is trained, loaded or cast has another version.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        versions = [(id(tensor), tensor.data_ptr(), version_of(tensor), tensor.dtype) for tensor in tensors]
        formatter = self.collator.formatter
        prepared = (
            self.collator.processor.image_settings(),
            formatter.segmentation_settings(),
            formatter.vision_settings(),
        )
        plain = [repr(value) for values in prepared for value in sorted(values.items()) if is_plain(value[1])]
        return [versions, plain, self.collator.segmentation_size, precision_settings(str(self.dtype))]

    def encode_images(self, batch: EncoderBatch) -> tuple[ImageFeatures, ...]:
        """Return each image's frozen features, in order; the segmentation model encodes prompted images alone."""
        images = batch.images
        features = dict(enumerate(images.stored_features))
        prompted = sorted(set(batch.prompts.owners)) if isinstance(self.model, Virtue) else list(features)
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
