"""Collation of samples to contrastive and ranking batches, which data workers run for the embedder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from virtue_pl.preprocessing.input_formatters import InputFormatter
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.preprocessing.prompts import PROMPT_MODES, prompt_region
from virtue_pl.preprocessing.truncation import format_text
from virtue_pl.types import (
    IMAGE_TOKEN,
    NO_FEATURES,
    DataError,
    EmbeddingInput,
    EncoderBatch,
    ImageBatch,
    ImageFeatures,
    PairBatch,
    PairIds,
    PromptBatch,
    RankingBatch,
    RankingSample,
    Region,
    Sample,
    VirtueError,
    VisualPrompt,
    merge_features,
)

TRAIN_MODES = (*PROMPT_MODES, "blind")
EVALUATION_MODES = ("box", "point", "mask", "no_prompt", "blind")

NO_PROMPT = VisualPrompt()

FeatureLookup = Callable[[str], ImageFeatures]
"""Maps an image's content key to its cached frozen features, `NO_FEATURES` where there are none."""


def content_id(*parts: str) -> int:
    """Return a stable 63-bit id of strings."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big") >> 1


def input_id(item: EmbeddingInput) -> int:
    """Return an id of an input's text, images, and prompts, where it has any."""
    prompts = [prompt_key(prompt) for prompt in item.prompts if not prompt.is_empty]
    return content_id(item.text, *item.image_keys, *prompts)


def prompt_key(prompt: VisualPrompt) -> str:
    """Return a text that is the same for the same boxes, points, labels and masks alone."""
    tensors = (prompt.boxes, prompt.points, prompt.point_labels, prompt.masks)
    content = b"".join(f"{tuple(found.shape)}".encode() + found.contiguous().numpy().tobytes() for found in tensors)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class ContrastiveCollator:
    """A collator that draws how each region is pointed at, tokenizes texts and resizes images.

    Args:
        processor: the backbone's tokenizer and image size.
        formatter: prepares text and pixels.
        segmentation_size: height and width of the segmentation model's canvas; None without a segmentation stream.
        train_modes: the share of each prompt mode in training; in "blind" a query is its instruction alone.
        evaluation_modes: the modes that every evaluation query is ranked in: "no_prompt" is the image alone, "blind"
            the instruction alone. Queries without regions are ranked in `distinct_modes`.
        fingerprints: for each stream, of all that an image's stored features depend on.
        segment_unprompted: see `Virtue`.

    Example:
        >>> collator = ContrastiveCollator(processor, VirtueFormatter(), 512, {"box": 1.0}, ["box"])  # doctest: +SKIP
        >>> batch = collator.collate_train(samples)
    """

    def __init__(
        self,
        processor: VLMProcessor,
        formatter: InputFormatter,
        segmentation_size: int | None,
        train_modes: Mapping[str, float],
        evaluation_modes: Sequence[str],
        fingerprints: Mapping[str, str] | None = None,
        segment_unprompted: bool = True,
    ) -> None:
        check_shares("train_modes", train_modes, TRAIN_MODES)
        check_modes("evaluation_modes", evaluation_modes, EVALUATION_MODES)
        self.processor = processor
        self.formatter = formatter
        self.segmentation_size = segmentation_size
        self.train_modes = dict(train_modes)
        self.evaluation_modes = tuple(evaluation_modes)
        self.fingerprints = dict(fingerprints or {})
        self.segment_unprompted = segment_unprompted

    def collate_train(self, samples: Sequence[Sample]) -> PairBatch:
        """Return a training batch; each query's prompt mode is drawn from torch's generator by `train_modes`.

        A region without a mask is pointed at by the other modes, in their proportions.
        """
        modes = self.draw_modes(samples)
        queries = [
            point_at(sample.query, sample.region, mode, None) for sample, mode in zip(samples, modes, strict=True)
        ]
        negatives = [(row, item) for row, sample in enumerate(samples) for item in sample.negatives]
        return PairBatch(
            keys=tuple(sample.key for sample in samples),
            queries=self.encoder_batch(queries),
            targets=self.encoder_batch([sample.target for sample in samples]),
            negatives=self.encoder_batch([item for _, item in negatives]) if negatives else None,
            ids=pair_ids(samples, negatives),
        )

    def draw_modes(self, samples: Sequence[Sample]) -> list[str]:
        """Return a prompt mode for each sample; of those without a mask one of the others, where there is one."""
        drawn = draw(self.train_modes, len(samples))
        others = {mode: share for mode, share in self.train_modes.items() if mode != "mask"}
        maskless = [
            row
            for row, (sample, mode) in enumerate(zip(samples, drawn, strict=True))
            if mode == "mask" and sample.region is not None and sample.region.mask is None
        ]
        if maskless and any(others.values()):
            for row, mode in zip(maskless, draw(others, len(maskless)), strict=True):
                drawn[row] = mode
        return drawn

    def collate_eval(self, samples: Sequence[RankingSample]) -> RankingBatch:
        """Return an evaluation batch: every query in each of `distinct_modes`, and the distinct candidates."""
        modes = self.distinct_modes(samples)
        queries = [evaluation_query(sample, mode) for mode in modes for sample in samples]
        candidates: dict[int, EmbeddingInput] = {}
        rows: list[tuple[int, ...]] = []
        positions: dict[int, int] = {}
        for sample in samples:
            found = [(input_id(item), item) for item in sample.candidates]
            for key, item in found:
                candidates.setdefault(key, item)
                positions.setdefault(key, len(positions))
            rows.append(tuple(positions[key] for key, _ in found))
        return RankingBatch(
            tuple(samples),
            modes,
            self.encoder_batch(queries),
            self.encoder_batch(list(candidates.values())),
            tuple(rows),
        )

    def distinct_modes(self, samples: Sequence[RankingSample]) -> tuple[str, ...]:
        """Return the evaluation modes in which these queries differ.

        Without a region there is nothing to point at: all modes but "blind" are the same as "no_prompt". Without an
        image "blind" is the same, too.
        """
        if any(sample.region is not None for sample in samples):
            return self.evaluation_modes
        images = any(sample.query.images for sample in samples)
        return tuple(
            dict.fromkeys(mode if mode == "blind" and images else "no_prompt" for mode in self.evaluation_modes)
        )

    def encoder_batch(self, items: Sequence[EmbeddingInput], cached: FeatureLookup | None = None) -> EncoderBatch:
        """Collate any inputs as rows, in order. An image that occurs again (by key) is prepared once.

        Args:
            items: texts, images and prompts.
            cached: called once for each distinct image that has a key; its features are used instead of pixels where
                `items` bring none.

        Raises:
            VirtueError: a row has a visual prompt and no image.
        """
        items = [self.formatter.prepare(item) for item in items]
        images = DistinctImages(cached)
        uses: list[tuple[int, int]] = []
        prompts: list[tuple[int, int, VisualPrompt]] = []
        for row, item in enumerate(items):
            if not item.images and not all(prompt.is_empty for prompt in item.prompts):
                raise VirtueError(
                    f"row {row} has a visual prompt but no image to point at: add the image, or leave the prompt out"
                )
            for position in range(len(item.images)):
                number = images.add(item, position)
                uses.append((row, number))
                prompts += [(row, number, prompt) for prompt in self.prompts_on(item, position)]
        input_ids, mask, position_ids = self.tokenize(items, Counter(row for row, _, _ in prompts))
        batch = EncoderBatch(
            input_ids,
            mask,
            self.prepare_images(images, {number for _, number, _ in prompts}),
            PromptBatch(tuple(prompt for _, _, prompt in prompts), index_tensor([number for _, number, _ in prompts])),
            index_tensor([row for row, _ in uses]),
            position_ids,
            index_tensor([number for _, number in uses]),
            index_tensor([row for row, _, _ in prompts]),
        )
        _ = batch.layout  # built here, in the worker, for the host of every device
        return batch

    def check_input(self, item: EmbeddingInput) -> None:
        """Raise VirtueError for an input that the model's processor cannot read, whatever its prompts.

        Of its images only the shapes are read.
        """
        self.formatter.check(item)
        self.row_of(replace(item, prompt=NO_PROMPT, extra_prompts=()))

    def check_sample(self, sample: Sample | RankingSample) -> None:
        """Raise DataError, which names the sample, where the model's processor cannot read one of its inputs."""
        answers = (sample.target, *sample.negatives) if isinstance(sample, Sample) else sample.candidates
        for item in (sample.query, *answers):
            try:
                self.check_input(item)
            except VirtueError as error:
                raise DataError(sample.key, str(error)) from error

    def row_of(self, item: EmbeddingInput) -> tuple[str, list[tuple[int, int]]]:
        """Return a prepared input's text as it is tokenized, and the resized sizes of its images.

        Raises VirtueError for what the model's processor cannot read.
        """
        sizes = [self.resized_size(image) for image in item.images]
        text = format_text(self.formatter, item, self.processor.image_delimiters)
        self.processor.check_row(text, sizes)
        return text, sizes

    def tokenize(
        self, items: Sequence[EmbeddingInput], prompt_counts: Mapping[int, int]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"], Int[Tensor, "*axes rows tokens"] | None]:
        """Return token ids, attention mask and positions of prepared inputs.

        prompt_counts: for each row, how many of its prompts become segment tokens.
        """
        rows = [self.row_of(item) for item in items]
        texts, sizes = [text for text, _ in rows], [row_sizes for _, row_sizes in rows]
        input_ids, mask = self.processor.tokenize(texts, sizes)
        positions = self.processor.position_ids(input_ids, mask, sizes)
        counts = [prompt_counts.get(row, 0) for row in range(len(items))]
        return input_ids, mask, self.formatter.position_ids(positions, counts)

    def prompts_on(self, item: EmbeddingInput, position: int) -> list[VisualPrompt]:
        """Return the prompts on one of the item's images, each of which becomes segment tokens.

        An empty prompt stands for the whole image.
        """
        given = item.prompts if position == 0 else (VisualPrompt(),)
        prompts = [
            self.formatter.visual_prompt(replace(item, prompt=prompt), self.segmentation_size) for prompt in given
        ]
        return [prompt for prompt in prompts if self.segment_unprompted or not prompt.is_empty]

    def resized_size(self, image: UInt8[Tensor, "3 height width"]) -> tuple[int, int]:
        """Return the (height, width) from which the image's tokens are counted."""
        return self.processor.resized_size(self.formatter.first_size((image.shape[1], image.shape[2])))

    def vision_pixels(self, image: UInt8[Tensor, "3 height width"]) -> Shaped[Tensor, "3 new_height new_width"]:
        """Return the image as the vision tower reads it."""
        return self.processor.resize(self.formatter.resize_first(image))

    def collate_images(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> ImageBatch:
        """Prepare images for both streams."""
        vision = tuple(self.vision_pixels(image) for image in images)
        if (size := self.segmentation_size) is None:
            return ImageBatch(vision)
        return ImageBatch(vision, tuple(self.formatter.segmentation_pixels(image, size) for image in images))

    def prepare_images(self, images: DistinctImages, prompted: Collection[int]) -> ImageBatch:
        """Prepare a batch's images for the streams that read them, with features instead of pixels where there are any.

        The segmentation model reads the `prompted` images (by index) alone.
        """
        both = list(zip(images.pixels, images.features, strict=True))
        vision = tuple(None if features.vision else self.vision_pixels(image) for image, features in both)
        segmentation: tuple[Tensor | None, ...] = ()
        if (size := self.segmentation_size) is not None:
            segmentation = tuple(
                self.formatter.segmentation_pixels(image, size)
                if number in prompted and not features.segmentation
                else None
                for number, (image, features) in enumerate(both)
            )
        return ImageBatch(vision, segmentation, drop_empty(images.features), tuple(images.keys))


def draw(shares: Mapping[str, float], count: int) -> list[str]:
    """Return so many names, drawn from torch's generator by their shares."""
    names, weights = list(shares), torch.tensor(list(shares.values()))
    return [names[number] for number in torch.multinomial(weights, count, replacement=True).tolist()]


class DistinctImages:
    """The distinct images of a batch, in the order in which rows first use them.

    pixels, features, keys: one entry an image; the key is "" for an image without one, which is distinct from every
    other.

    Args:
        cached: looks features up by key, once an image, where the input brings none.

    Example:
        >>> images = DistinctImages()
        >>> item = EmbeddingInput("a cat", (torch.zeros(3, 8, 8, dtype=torch.uint8),), image_keys=("cat",))
        >>> images.add(item, 0), images.add(item, 0), images.keys
        (0, 0, ['cat'])
    """

    def __init__(self, cached: FeatureLookup | None = None) -> None:
        self.pixels: list[Tensor] = []
        self.features: list[ImageFeatures] = []
        self.keys: list[str] = []
        self._cached = cached
        self._numbers: dict[str, int] = {}

    def add(self, item: EmbeddingInput, position: int) -> int:
        """Return the index of the item's image at `position` among the distinct ones, adding it if it is new."""
        key = item.image_keys[position] if item.image_keys else ""
        if key in self._numbers:
            return self._numbers[key]
        features = item.features[position] if item.features else NO_FEATURES
        if key and self._cached is not None:
            features = merge_features(features, self._cached(key))
        self.pixels.append(item.images[position])
        self.features.append(features)
        self.keys.append(key)
        number = len(self.pixels) - 1
        if key:
            self._numbers[key] = number
        return number


def drop_empty(features: Sequence[ImageFeatures]) -> tuple[ImageFeatures, ...]:
    """Return the features of every image; an empty tuple where no image has any."""
    return tuple(features) if any(each.segmentation or each.vision for each in features) else ()


def pair_ids(samples: Sequence[Sample], negatives: Sequence[tuple[int, EmbeddingInput]]) -> PairIds:
    """Return the content ids of training pairs. negatives: each hard negative with the row of its pair."""
    return PairIds(
        query_ids=index_tensor([content_id(sample.key) for sample in samples]),
        target_ids=index_tensor(
            [content_id("label", sample.label) if sample.label else input_id(sample.target) for sample in samples]
        ),
        negative_ids=index_tensor([input_id(item) for _, item in negatives]),
        negative_rows=index_tensor([row for row, _ in negatives]),
        image_ids=index_tensor([content_id(*sample.query.image_keys[:1] or (sample.key,)) for sample in samples]),
    )


def index_tensor(values: Sequence[int]) -> Int[Tensor, " values"]:
    """Return integers as an int64 tensor, which may be empty."""
    return torch.tensor(values, dtype=torch.long)


def check_modes(option: str, modes: Sequence[str] | Mapping[str, float], allowed: Sequence[str]) -> None:
    """Raise VirtueError, naming `option`, for a mode that is not allowed."""
    for mode in modes:
        if mode not in allowed:
            raise VirtueError(f"{option}: {mode!r}, expected some of {', '.join(allowed)}")


def check_shares(option: str, modes: Mapping[str, float], allowed: Sequence[str]) -> None:
    """Raise VirtueError, naming `option`, for a mode that is not allowed, and for shares that none can be drawn by."""
    check_modes(option, modes, allowed)
    if not modes or min(modes.values()) < 0 or not sum(modes.values()):
        raise VirtueError(f"{option}: {dict(modes)}, expected a share for at least one mode, none below 0")


def point_at(
    query: EmbeddingInput, region: Region | None, mode: str, generator: torch.Generator | None
) -> EmbeddingInput:
    """Return the query with a prompt on its region; a query without a region (most of MMEB) keeps its own prompt.

    In mode "blind" it is its text alone, with nothing where the image stood.
    """
    if mode == "blind":
        return EmbeddingInput(text=query.text.replace(IMAGE_TOKEN, "").lstrip())
    return query if region is None else replace(query, prompt=prompt_region(region, mode, generator), extra_prompts=())


def evaluation_query(sample: RankingSample, mode: str) -> EmbeddingInput:
    """Return the query in an evaluation mode; the click depends on the sample's key alone."""
    prompt_mode = "none" if mode == "no_prompt" else mode
    return point_at(sample.query, sample.region, prompt_mode, torch.Generator().manual_seed(content_id(sample.key)))
