"""What is embedded, trained on and ranked, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.types.features import (
    ImageFeatures,
)
from virtue_pl.types.prompts import Region, VisualPrompt
from virtue_pl.types.tensors import TensorDataclass

IMAGE_TOKEN = "<|image_pad|>"
"""Where an image stands inside a text, whichever backbone reads it; each backbone puts its own token there."""


@dataclass(frozen=True, eq=False)
class EmbeddingInput(TensorDataclass):
    """One thing to embed: a text, images (uint8 RGB), and visual prompts on the first of them.

    `text` may hold `IMAGE_TOKEN` where an image stands; without one, the images come first.
    `image_keys` name the images by content, so that one that occurs twice in a batch is encoded once.
    `features` are what is stored of the images, one each; empty where nothing is.
    `prompt` is one region, however many points, boxes and masks say which. `extra_prompts` are further regions of the
    same image, each
    of which becomes segment tokens of its own.
    """

    text: str = ""
    images: tuple[UInt8[Tensor, "3 height width"], ...] = ()
    prompt: VisualPrompt = field(default_factory=VisualPrompt)
    image_keys: tuple[str, ...] = ()
    features: tuple[ImageFeatures, ...] = ()
    extra_prompts: tuple[VisualPrompt, ...] = ()

    @property
    def prompts(self) -> tuple[VisualPrompt, ...]:
        """All regions of the first image; one that is empty where nothing is pointed at."""
        return (self.prompt, *self.extra_prompts)


@dataclass(frozen=True, eq=False)
class Sample:
    """One training pair with its hard negatives. `region` is what the query's caption speaks of, exactly."""

    key: str
    task: str
    query: EmbeddingInput
    target: EmbeddingInput
    negatives: tuple[EmbeddingInput, ...] = ()
    region: Region | None = None


@dataclass(frozen=True, eq=False)
class RankingSample:
    """One evaluation query and its candidates.

    `rankings` names lists of indices into `candidates`, the right one first: the sample is scored once for each
    (for example "hit@1" over ten captions, and "object" over the right one and three object swaps).
    """

    key: str
    task: str
    query: EmbeddingInput
    candidates: tuple[EmbeddingInput, ...]
    rankings: Mapping[str, tuple[int, ...]]
    region: Region | None = None
