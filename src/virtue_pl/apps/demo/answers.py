"""Answers of a model to what a visitor points at: masks, a ranking before and after it, and a similarity map."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from virtue_pl.apps.demo.images import PageImage
from virtue_pl.embedder import Embedder, ImageHandle
from virtue_pl.types import VirtueError, VisualPrompt

IMAGES, CAPTIONS = 16, 4096
"""Images whose features are held, and captions whose embeddings are."""
GRID = 8
"""Points on a side of the similarity map."""


@dataclass(frozen=True)
class Ranked:
    """A caption with its cosines, without a prompt and with it, and its ranks, from 1.

    Example:
        >>> Ranked("a cat", before=0.2, after=0.6, rank_before=3, rank_after=1).lifted_by
        2
    """

    caption: str
    before: float
    after: float
    rank_before: int
    rank_after: int

    @property
    def lifted_by(self) -> int:
        """The ranks that the prompt has lifted it by."""
        return self.rank_before - self.rank_after


class Answerer:
    """A model that answers many visitors, one after the other; each image's towers run once while it is held.

    Args:
        embedder: the model.
        instruction: the text beside the image when captions are ranked.

    Example:
        >>> answerer = Answerer(embedder)  # doctest: +SKIP
        >>> answerer.rank(image, [prompt], ["a cat", "a dog"])[0].caption  # doctest: +SKIP
        'a dog'
    """

    def __init__(self, embedder: Embedder, instruction: str = "") -> None:
        self.embedder, self.instruction = embedder, instruction
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, ImageHandle] = OrderedDict()
        self._grids: OrderedDict[str, Float[np.ndarray, "points dim"]] = OrderedDict()
        self._plain: OrderedDict[str, Float[np.ndarray, " dim"]] = OrderedDict()
        self._captions: OrderedDict[str, Float[np.ndarray, " dim"]] = OrderedDict()

    def handle(self, image: PageImage) -> ImageHandle:
        """Return the image's handle; its towers run when it is first asked."""
        if image.key not in self._asked:
            self._asked[image.key] = self.embedder.image(image.pixels)
        self._asked.move_to_end(image.key)
        trim(self._asked, IMAGES)
        return self._asked[image.key]

    def masks(self, image: PageImage, prompts: Sequence[VisualPrompt]) -> list[Bool[np.ndarray, "height width"]]:
        """Return what the segmentation network took each prompt for, at its own size; none where it predicts none."""
        with self._lock:
            handle = self.handle(image)
            item = replace(handle.item, features=handle.features(True))
            found = self.embedder.predict_masks([replace(item, prompt=prompt) for prompt in prompts]) if prompts else []
        return [mask.numpy() for mask in found or []]

    def embed(self, image: PageImage, prompts: Sequence[VisualPrompt], text: str) -> Float[np.ndarray, " dim"]:
        """Return the embedding of an image with a text and prompts; that without prompts is computed once."""
        with self._lock:
            if prompts:
                return np.asarray(self.handle(image).encode(list(prompts), text))
            key = f"{image.key}\n{text}"
            if key not in self._plain:
                self._plain[key] = np.asarray(self.handle(image).encode(None, text))
            trim(self._plain, IMAGES)
            return self._plain[key]

    def embed_captions(self, captions: Sequence[str]) -> Float[np.ndarray, "captions dim"]:
        """Return captions' embeddings, each computed once."""
        with self._lock:
            if missing := [text for text in dict.fromkeys(captions) if text not in self._captions]:
                self._captions.update(zip(missing, np.asarray(self.embedder.encode(missing)), strict=True))
            found = np.stack([self._captions[text] for text in captions])
            trim(self._captions, CAPTIONS)
        return found

    def rank(self, image: PageImage, prompts: Sequence[VisualPrompt], captions: Sequence[str]) -> list[Ranked]:
        """Return captions, best first with the prompts. Raises VirtueError where there is none."""
        captions = list(dict.fromkeys(text.strip() for text in captions if text.strip()))
        if not captions:
            raise VirtueError("there are no captions: write some, one a line")
        texts = self.embed_captions(captions)
        before = texts @ self.embed(image, (), self.instruction)
        after = texts @ self.embed(image, prompts, self.instruction) if prompts else before
        ranks = [np.argsort(np.argsort(-scores, kind="stable")) + 1 for scores in (before, after)]
        rows = zip(captions, before.tolist(), after.tolist(), ranks[0].tolist(), ranks[1].tolist(), strict=True)
        return sorted((Ranked(*row) for row in rows), key=lambda row: row.rank_after)

    def similarity(self, image: PageImage, prompts: Sequence[VisualPrompt]) -> Float[np.ndarray, "grid grid"]:
        """Return the cosine of the prompted embedding with that of a click on each point of a grid, rows from the top.

        The grid's embeddings are computed once an image.
        """
        asked = self.embed(image, prompts, "")
        with self._lock:
            if image.key not in self._grids:
                self._grids[image.key] = np.asarray(self.handle(image).regions(prompts=grid_prompts(GRID)))
            self._grids.move_to_end(image.key)
            trim(self._grids, IMAGES)
            grid = self._grids[image.key]
        return (grid @ asked).reshape(GRID, GRID)


def grid_prompts(grid_size: int) -> list[VisualPrompt]:
    """Return a click at each point of a grid over the whole image, row by row from the top.

    Example:
        >>> [prompt.points[0].tolist() for prompt in grid_prompts(2)][:2]
        [[0.25, 0.25], [0.75, 0.25]]
    """
    middles = [(number + 0.5) / grid_size for number in range(grid_size)]
    return [
        VisualPrompt(points=torch.tensor([[x, y]]), point_labels=torch.tensor([1])) for y in middles for x in middles
    ]


def trim(held: OrderedDict[str, Any], most: int) -> None:
    """Forget what was used longest ago beyond `most`."""
    while len(held) > most:
        held.popitem(last=False)
