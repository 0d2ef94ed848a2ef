"""Samples to contrastive and ranking batches: what data workers run for the embedder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from virtue_pl.backbones.vlm import VLMProcessor
from virtue_pl.prompts import PROMPT_MODES, prompt_region
from virtue_pl.recipes import Recipe
from virtue_pl.types import (
    IMAGE_TOKEN,
    UNKNOWN,
    EmbeddingInput,
    EncoderBatch,
    PairBatch,
    PictureFeatures,
    Pictures,
    PromptBatch,
    RankingBatch,
    RankingSample,
    Region,
    Sample,
    VirtueError,
    VisualPrompt,
)

TRAIN_MODES = (*PROMPT_MODES, "blind")
EVALUATION_MODES = ("box", "point", "mask", "no_prompt", "blind")


def content_id(*parts: str) -> int:
    """A stable 63-bit id of strings."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big") >> 1


def input_id(item: EmbeddingInput) -> int:
    """Two inputs with the same text and the same pictures have the same id, whatever their prompt."""
    return content_id(item.text, *item.image_keys)


class ContrastivePreprocess:
    """Chooses how each region is pointed at, and tokenizes, resizes and collates.

    Args:
        processor: the backbone's tokenizer and picture size.
        recipe: how text and pixels are prepared.
        segmentation_size: side of the segmentation model's canvas, or None without a segmentation stream.
        train_modes: how often each prompt mode is shown in training; "blind" shows the instruction alone.
        evaluation_modes: the modes that every evaluation query is ranked in; "no_prompt" shows the picture alone,
            "blind" the instruction alone. Queries without regions are ranked only as `distinct_modes` says.
        fingerprints: by stream, of what a picture's stored features depend on.
        segment_unprompted: see `Virtue`.
    """

    def __init__(
        self,
        processor: VLMProcessor,
        recipe: Recipe,
        segmentation_size: int | None,
        train_modes: Mapping[str, float],
        evaluation_modes: Sequence[str],
        fingerprints: Mapping[str, str] | None = None,
        segment_unprompted: bool = True,
    ) -> None:
        check_modes("train_modes", train_modes, TRAIN_MODES)
        check_modes("evaluation_modes", evaluation_modes, EVALUATION_MODES)
        self.processor = processor
        self.recipe = recipe
        self.segmentation_size = segmentation_size
        self.train_modes = dict(train_modes)
        self.evaluation_modes = tuple(evaluation_modes)
        self.fingerprints = dict(fingerprints or {})
        self.segment_unprompted = segment_unprompted

    def train(self, samples: Sequence[Sample]) -> PairBatch:
        modes, weights = list(self.train_modes), torch.tensor(list(self.train_modes.values()))
        draws = torch.multinomial(weights, len(samples), replacement=True).tolist()
        queries = [point_at(sample.query, sample.region, modes[draw], None) for sample, draw in zip(samples, draws, strict=True)]
        negatives = [(row, item) for row, sample in enumerate(samples) for item in sample.negatives]
        return PairBatch(
            keys=tuple(sample.key for sample in samples),
            queries=self.encoder_batch(queries),
            targets=self.encoder_batch([sample.target for sample in samples]),
            negatives=self.encoder_batch([item for _, item in negatives]) if negatives else None,
            query_ids=ids([content_id(sample.key) for sample in samples]),
            target_ids=ids([input_id(sample.target) for sample in samples]),
            negative_ids=ids([input_id(item) for _, item in negatives]),
            negative_rows=ids([row for row, _ in negatives]),
            picture_ids=ids([content_id(*sample.query.image_keys[:1] or (sample.key,)) for sample in samples]),
        )

    def evaluate(self, samples: Sequence[RankingSample]) -> RankingBatch:
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
        return RankingBatch(tuple(samples), modes, self.encoder_batch(queries), self.encoder_batch(list(candidates.values())), tuple(rows))

    def distinct_modes(self, samples: Sequence[RankingSample]) -> tuple[str, ...]:
        """The evaluation modes in which these queries differ.

        Without a region there is nothing to point at, so all modes but "blind" are "no_prompt"; without a picture "blind" is, too.
        """
        if any(sample.region is not None for sample in samples):
            return self.evaluation_modes
        pictures = any(sample.query.images for sample in samples)
        return tuple(dict.fromkeys(mode if mode == "blind" and pictures else "no_prompt" for mode in self.evaluation_modes))

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Any inputs as rows, in order; a picture that occurs again (by key) is prepared once."""
        items = [self.recipe.prepare(item) for item in items]
        index: dict[str, int] = {}
        shown: list[tuple[Tensor, PictureFeatures]] = []
        uses: list[tuple[int, int]] = []
        prompts: list[tuple[int, int, VisualPrompt]] = []
        sizes: list[list[tuple[int, int]]] = []
        for row, item in enumerate(items):
            if not item.images and not all(prompt.is_empty for prompt in item.prompts):
                raise VirtueError(f"row {row} has a visual prompt but no picture to point at: add the picture, or leave the prompt out")
            sizes.append([self.processor.resized((image.shape[1], image.shape[2])) for image in item.images])
            for number, image in enumerate(item.images):
                key = item.image_keys[number] if item.image_keys else f"row {row}, picture {number}"
                if key not in index:
                    index[key] = len(shown)
                    shown.append((image, item.features[number] if item.features else UNKNOWN))
                uses.append((row, index[key]))
                prompts += [(row, index[key], prompt) for prompt in self.prompts_on(item, number)]
        input_ids, mask = self.processor.tokenize([self.recipe.marked(self.recipe.text(item), self.processor.marks) for item in items], sizes)
        segmented = Counter(row for row, _, _ in prompts)
        positions = self.recipe.position_ids(self.processor.position_ids(input_ids, mask, sizes), [segmented[row] for row in range(len(items))])
        return EncoderBatch(
            input_ids,
            mask,
            self.pictures([image for image, _ in shown], [known for _, known in shown]),
            PromptBatch(tuple(prompt for _, _, prompt in prompts), ids([picture for _, picture, _ in prompts])),
            ids([row for row, _ in uses]),
            positions,
            ids([picture for _, picture in uses]),
            ids([row for row, _, _ in prompts]),
        )

    def prompts_on(self, item: EmbeddingInput, number: int) -> list[VisualPrompt]:
        """The prompts on the item's picture `number`, each of which becomes segment tokens; an empty one stands for the whole picture."""
        given = item.prompts if number == 0 else (VisualPrompt(),)
        prompts = [self.recipe.visual_prompt(replace(item, prompt=prompt), self.segmentation_size) for prompt in given]
        return [prompt for prompt in prompts if self.segment_unprompted or not prompt.is_empty]

    def pictures(self, images: Sequence[UInt8[Tensor, "3 height width"]], known: Sequence[PictureFeatures] = ()) -> Pictures:
        """Pictures for both streams; what is known of them stands in for their pixels."""
        known = known or [UNKNOWN] * len(images)
        vision = tuple(None if stored.vision else self.processor.resize(image) for image, stored in zip(images, known, strict=True))
        segmentation = self.canvases(images, known, self.segmentation_size) if self.segmentation_size is not None else ()
        return Pictures(vision, segmentation, known_features(known))

    def canvases(self, images: Sequence[UInt8[Tensor, "3 height width"]], known: Sequence[PictureFeatures], size: int) -> tuple[Tensor | None, ...]:
        """Pixels for the segmentation stream, of the pictures that it has no stored features of."""
        chosen = zip(images, known, strict=True)
        return tuple(None if stored.segmentation else self.recipe.segmentation_pixels(image, size) for image, stored in chosen)


def known_features(known: Sequence[PictureFeatures]) -> tuple[PictureFeatures, ...]:
    """The features of every picture; empty where nothing is known of any."""
    return tuple(known) if any(stored.segmentation or stored.vision for stored in known) else ()


def ids(values: Sequence[int]) -> Int[Tensor, " values"]:
    return torch.tensor(values, dtype=torch.long)


def check_modes(option: str, modes: Sequence[str] | Mapping[str, float], known: Sequence[str]) -> None:
    for mode in modes:
        if mode not in known:
            raise VirtueError(f"{option}: {mode!r}, expected some of {', '.join(known)}")


def point_at(query: EmbeddingInput, region: Region | None, mode: str, generator: torch.Generator | None) -> EmbeddingInput:
    """The query with its region pointed at; a query without a region (most of MMEB) keeps the prompt that it has.

    In mode "blind" it is its text alone, with nothing where the picture stood.
    """
    if mode == "blind":
        return EmbeddingInput(text=query.text.replace(IMAGE_TOKEN, "").lstrip())
    return query if region is None else replace(query, prompt=prompt_region(region, mode, generator), further_prompts=())


def evaluation_query(sample: RankingSample, mode: str) -> EmbeddingInput:
    """The query in an evaluation mode; the click depends on the sample's key alone."""
    shown = "none" if mode == "no_prompt" else mode
    return point_at(sample.query, sample.region, shown, torch.Generator().manual_seed(content_id(sample.key)))
