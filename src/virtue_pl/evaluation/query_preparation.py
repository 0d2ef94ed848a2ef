"""How an evaluation asks: what of a query's region is told in words, and what is pointed at in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from virtue_pl.parts.preprocess import EVALUATION_MODES, ContrastivePreprocess, check_modes, content_id
from virtue_pl.prompts import prompt_region
from virtue_pl.recipes import Recipe, ReferenceRecipe, VirtueRecipe
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, EncoderBatch, EvaluationRow, Region, VirtueError, VisualPrompt

REGION_SETTINGS = ("prompt_text", "prompt_frame")
"""Of recipes: how a region is told and where it lies."""


@dataclass(frozen=True)
class QueryFormat:
    """mode: how a region is pointed at ("box", "point", "mask", "no_prompt", "blind").

    words: whether it is told in words, too. frame: "canvas", where it lies; "pixels": its pixels are read as the segmentation model's,
    as the published evaluation does. show: what `prepare` of another recipe makes of a query first (a crop, a drawn marker).
    """

    mode: str = "box"
    words: bool = True
    frame: Literal["canvas", "pixels"] = "canvas"
    show: Recipe | None = None

    def __post_init__(self) -> None:
        check_modes("mode", [self.mode], EVALUATION_MODES)


class EvaluationPreprocess:
    """What an evaluation's data learns from the model.

    Args:
        preprocess: the model's own.
        query_format: how queries are asked.
        segmented: whether the segmentation stream is used.
    """

    def __init__(self, preprocess: ContrastivePreprocess, query_format: QueryFormat, segmented: bool) -> None:
        recipe = preprocess.recipe
        self.query_format = query_format
        self.canvas = preprocess.segmentation_size if segmented else None
        self.published = isinstance(recipe, ReferenceRecipe)
        if query_format.frame == "pixels" and not self.published:
            raise VirtueError("--prompt-frame pixels is how the published evaluation misreads boxes, for recipe reference alone: leave it out")
        self.preprocess = ContrastivePreprocess(
            preprocess.processor,
            configure_recipe(recipe, query_format.words and not self.published),
            self.canvas,
            preprocess.train_modes,
            preprocess.evaluation_modes,
            preprocess.fingerprints,
            preprocess.segment_unprompted,
        )

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        mode, region = self.query_format.mode, row.region
        text, keys = row.published_text if self.published else row.text, () if row.picture is None else (row.picture,)
        if mode == "blind":
            return EmbeddingInput(text.replace(IMAGE_TOKEN, "").lstrip())
        if region is None or row.size is None or mode == "no_prompt":
            return EmbeddingInput(text, (), image_keys=keys)
        prompt = region_prompt(region, mode, row)
        if self.published and self.query_format.words:
            text += published_region_text(prompt, row)
        return EmbeddingInput(text, (), self.to_frame(prompt, row.size), keys)

    def to_frame(self, prompt: VisualPrompt, size: tuple[int, int]) -> VisualPrompt:
        """The prompt where the segmentation model is shown it. size: (height, width) of the picture. Masks stay."""
        if self.query_format.frame == "canvas" or self.canvas is None or self.query_format.show is not None:
            return prompt
        scale = torch.tensor([size[1], size[0]]) / self.canvas
        return replace(prompt, boxes=prompt.boxes * scale.repeat(2), points=prompt.points * scale)

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        show = self.query_format.show
        return self.preprocess.encoder_batch(list(items) if show is None else [show.prepare(item) for item in items])

    def identity(self) -> list[Any]:
        """All that, beside the model and the input, the embedding of a picture depends on."""
        recipes = [recipe for recipe in (self.preprocess.recipe, self.query_format.show) if recipe is not None]
        return [self.canvas, self.preprocess.segment_unprompted, *((type(recipe).__qualname__, sorted(vars(recipe).items())) for recipe in recipes)]

    def text_identity(self) -> list[Any]:
        """The same of a text, to which nothing is shown and no region is told."""
        recipe = self.preprocess.recipe
        return ["texts", type(recipe).__qualname__, sorted((name, value) for name, value in vars(recipe).items() if name not in REGION_SETTINGS)]


def configure_recipe(recipe: Recipe, words: bool) -> Recipe:
    """The recipe with or without the region in words, and without the published space, which evaluation texts bring along."""
    if not isinstance(recipe, VirtueRecipe):
        return recipe
    changed = copy(recipe)
    changed.prompt_text = words and recipe.prompt_text
    if isinstance(changed, ReferenceRecipe):
        changed.space_after_picture, changed.prompt_frame = False, "picture"
    return changed


def region_prompt(region: Region, mode: str, row: EvaluationRow) -> VisualPrompt:
    """The region in a mode; the click depends on the row alone. Raises VirtueError naming it where it lacks a mask."""
    try:
        return prompt_region(region, mode, torch.Generator().manual_seed(content_id(row.key)))
    except VirtueError as error:
        raise VirtueError(f"{row.set} row {row.row}: {error}") from error


def published_region_text(prompt: VisualPrompt, row: EvaluationRow) -> str:
    """What the published evaluation adds to a query; a point as its demonstration writes it. A mask has no words."""
    if len(prompt.boxes):
        return f"\n{row.box_words}"
    if len(prompt.points) and row.size is not None:
        x, y = prompt.points[0].tolist()
        return f"\nReferring object point: ({round(x * row.size[1])}, {round(y * row.size[0])})"
    return ""
