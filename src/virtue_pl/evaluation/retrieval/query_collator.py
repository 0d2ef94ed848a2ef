"""Queries of an evaluation as a model reads them: the region described in the text, and the prompt on the image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch

from virtue_pl.evaluation.settings import QueryFormat
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator, content_id
from virtue_pl.preprocessing.input_formatters import InputFormatter, PublishedFormatter, VirtueFormatter
from virtue_pl.preprocessing.prompts import prompt_region
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, EncoderBatch, EvaluationRow, Region, VirtueError, VisualPrompt

REGION_SETTINGS = ("prompt_text", "prompt_frame")
"""Attributes of an input formatter that determine a region's description and its frame."""


class EvaluationCollator:
    """Collator that turns rows of evaluation sets into queries, and inputs into batches, by a `QueryFormat`.

    Raises VirtueError where the frame is "pixels" and the model's formatter is not the published one.

    Args:
        collator: the model's own collator.
        query_format: the form of queries; the segmentation stream is used where its `stream` is "whole".

    Example:
        >>> collator = EvaluationCollator(model.collator, QueryFormat(mode="point"))  # doctest: +SKIP
        >>> batch = collator.encoder_batch([collator.query(row) for row in rows])
    """

    def __init__(self, collator: ContrastiveCollator, query_format: QueryFormat) -> None:
        formatter = collator.formatter
        self.query_format = query_format
        self.canvas = collator.segmentation_size if query_format.stream == "whole" else None
        self.published = isinstance(formatter, PublishedFormatter)
        self.frame = query_format.prompt_frame or ("pixels" if self.published else "canvas")
        if self.frame == "pixels" and not self.published:
            raise VirtueError(
                "--prompt-frame pixels is how the published evaluation misreads boxes, for formatter published alone:"
                " leave it out"
            )
        self.collator = ContrastiveCollator(
            collator.processor,
            configure_formatter(formatter, query_format.describe_region and not self.published),
            self.canvas,
            collator.train_modes,
            collator.evaluation_modes,
            collator.fingerprints,
            collator.segment_unprompted,
        )

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """Return the row's query in the format's mode; images are referred to by their keys.

        Raises VirtueError where the mode needs a mask that the region lacks.
        """
        mode, region = self.query_format.mode, row.region
        if mode == "blind":
            return EmbeddingInput(self.text(row).replace(IMAGE_TOKEN, "").lstrip())
        if region is None or row.size is None or mode == "no_prompt":
            return EmbeddingInput(self.text(row), (), image_keys=row.images)
        return self.prompted_query(row, region_prompt(region, mode, row))

    def text(self, row: EvaluationRow) -> str:
        """Return the row's text as the model's formatter expects it, without the region in words."""
        return row.published_text if self.published else row.text

    def prompted_query(self, row: EvaluationRow, prompt: VisualPrompt) -> EmbeddingInput:
        """Return the row's query with any prompt on its image, such as an imprecise one, instead of its region's.

        prompt: in the frame of the image; the text describes it where the format says so.
        """
        assert row.image is not None and row.size is not None, "there is an image to point at"
        text = self.text(row)
        if self.published and self.query_format.describe_region:
            text += published_region_text(prompt, row)
        return EmbeddingInput(text, (), self.to_frame(prompt, row.size), row.images)

    def to_frame(self, prompt: VisualPrompt, size: tuple[int, int]) -> VisualPrompt:
        """Return the prompt with boxes and points in the frame of the segmentation model; masks do not change.

        size: (height, width) of the image in pixels.
        """
        if self.frame == "canvas" or self.canvas is None or self.query_format.image_transform is not None:
            return prompt
        return prompt.scale(size[1] / self.canvas, size[0] / self.canvas)

    def check_input(self, item: EmbeddingInput) -> None:
        """Raise VirtueError for an input that the model cannot read; of its images only the shapes are read."""
        self.collator.check_input(item)

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Return the batch of the inputs, each changed by the format's image transform first."""
        transform = self.query_format.image_transform
        return self.collator.encoder_batch(
            list(items) if transform is None else [transform.prepare(item) for item in items]
        )

    def identity(self) -> list[Any]:
        """Return all that the embedding of an input with images depends on, beside the model and the input."""
        formatters = self.collator.formatter, self.query_format.image_transform
        return [self.canvas, self.collator.segment_unprompted, *formatters]

    def text_identity(self) -> list[Any]:
        """Return all that the embedding of a text depends on, beside the model and the input."""
        formatter = self.collator.formatter
        settings = {name: value for name, value in vars(formatter).items() if name not in REGION_SETTINGS}
        return ["texts", type(formatter), settings]


def configure_formatter(formatter: InputFormatter, describe_region: bool) -> InputFormatter:
    """Return the input formatter with or without the region's description in the text.

    The published formatter's space after an image is left out, because texts of evaluations bring it along.
    """
    if not isinstance(formatter, VirtueFormatter):
        return formatter
    changed = copy(formatter)
    changed.prompt_text = describe_region and formatter.prompt_text
    if isinstance(changed, PublishedFormatter):
        changed.space_after_image, changed.prompt_frame = False, "image"
    return changed


def region_prompt(region: Region, mode: str, row: EvaluationRow) -> VisualPrompt:
    """Return the prompt of a region in a mode; the click depends on the row's key alone.

    Raises VirtueError naming a row that lacks a mask.
    """
    try:
        return prompt_region(region, mode, torch.Generator().manual_seed(content_id(row.key)))
    except VirtueError as error:
        raise VirtueError(f"{row.set} row {row.row}: {error}") from error


def published_region_text(prompt: VisualPrompt, row: EvaluationRow) -> str:
    """Return the description that the published evaluation appends to a query's text; "" for a mask.

    A point is written as in the published demonstration; a box that is not the region's own in whole pixels.
    """
    if row.size is None:
        return ""
    height, width = row.size
    if len(prompt.boxes):
        own = row.compact_region
        if own is not None and torch.equal(prompt.boxes[0], own.box.float()):
            return f"\n{row.box_words}"
        x1, y1, x2, y2 = prompt.boxes[0].tolist()
        corners = [round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)]
        return f"\nReferring object bbox: {corners}"
    if len(prompt.points):
        x, y = prompt.points[0].tolist()
        return f"\nReferring object point: ({round(x * width)}, {round(y * height)})"
    return ""
