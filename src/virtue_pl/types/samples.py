"""Inputs to embed, and samples to train on and to rank, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.types.features import ImageFeatures
from virtue_pl.types.prompts import Region, VisualPrompt
from virtue_pl.types.tensors import TensorDataclass

IMAGE_TOKEN = "<|image_pad|>"
"""Stands for an image inside a text, whichever backbone reads it; each backbone puts its own token there."""


def join_instruction(instruction: str, text: str) -> str:
    """Return a text behind an instruction, with a space between; one of them alone where the other is empty.

    Example:
        >>> join_instruction("Find the caption.", "a cat"), join_instruction("", "a cat")
        ('Find the caption. a cat', 'a cat')
    """
    return " ".join(filter(None, (instruction, text)))


@dataclass(frozen=True, eq=False)
class EmbeddingInput(TensorDataclass):
    """One input to embed: a text, images (uint8 RGB), and visual prompts on the first of them.

    text: may hold `IMAGE_TOKEN` where an image stands; without one, the images come first.
    prompt: one region, given by any number of points, boxes and masks.
    image_keys: names of the images by content, so that one that occurs twice in a batch is encoded once.
    features: stored features of the images, one entry each; empty where nothing is stored.
    extra_prompts: further regions of the same image, each of which becomes segment tokens of its own.

    Example:
        >>> import torch
        >>> box = VisualPrompt.from_pixels(boxes=[[10, 10, 50, 40]], size=(60, 80))
        >>> item = EmbeddingInput("What is this?", (torch.zeros(3, 60, 80, dtype=torch.uint8),), box)
        >>> len(item.prompts)
        1
    """

    text: str = ""
    images: tuple[UInt8[Tensor, "3 height width"], ...] = ()
    prompt: VisualPrompt = field(default_factory=VisualPrompt)
    image_keys: tuple[str, ...] = ()
    features: tuple[ImageFeatures, ...] = ()
    extra_prompts: tuple[VisualPrompt, ...] = ()

    @property
    def prompts(self) -> tuple[VisualPrompt, ...]:
        """All prompts on the first image; a single empty one where nothing is pointed at."""
        return (self.prompt, *self.extra_prompts)


@dataclass(frozen=True, eq=False)
class Sample:
    """One training pair with its hard negatives.

    key: the sample's name in its dataset. task: the dataset's name. region: the exact region that the query is about.
    label: samples of one label are right answers of each other, whatever their targets; "" where the target says it.

    Example:
        >>> sample = Sample("scar/0", "scar", EmbeddingInput("What is this?"), EmbeddingInput("a cat"))
        >>> len(sample.negatives)
        0
    """

    key: str
    task: str
    query: EmbeddingInput
    target: EmbeddingInput
    negatives: tuple[EmbeddingInput, ...] = ()
    region: Region | None = None
    label: str = ""


@dataclass(frozen=True, eq=False)
class RankingSample:
    """One evaluation query and its candidates.

    rankings: named lists of indices into `candidates`, the right one first. The sample is scored once for each list,
        for example "hit@1" over ten captions, and "object" over the right one and three object swaps.

    Example:
        >>> captions = tuple(EmbeddingInput(text) for text in ("a cat", "a dog", "a red cat"))
        >>> rankings = {"hit@1": (0, 1, 2), "object": (0, 1)}
        >>> sample = RankingSample("scar/0", "scar", EmbeddingInput("What is this?"), captions, rankings)
    """

    key: str
    task: str
    query: EmbeddingInput
    candidates: tuple[EmbeddingInput, ...]
    rankings: Mapping[str, tuple[int, ...]]
    region: Region | None = None
