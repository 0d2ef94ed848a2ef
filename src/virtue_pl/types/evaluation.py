"""Rows, sets and inputs of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from virtue_pl.types.batches import EncoderBatch
from virtue_pl.types.prompts import Region, VisualPrompt
from virtue_pl.types.samples import EmbeddingInput
from virtue_pl.types.tensors import TensorDataclass


class CompactRegion(NamedTuple):
    """A region whose mask is in memory as run lengths: a photograph's mask takes kilobytes instead of megabytes.

    runs: lengths down the columns, outside, inside, outside, ...; None without a mask. size: its (height, width).

    Example:
        >>> region = Region(torch.tensor([0.0, 0.0, 0.5, 0.5]), torch.eye(2, dtype=torch.bool))
        >>> compact = CompactRegion.pack(region)
        >>> compact.runs, torch.equal(compact.unpack().mask, region.mask)
        (array([0, 1, 2, 1], dtype=int32), True)
    """

    box: Float[Tensor, "4"]
    runs: Int[np.ndarray, " runs"] | None
    size: tuple[int, int]
    given: VisualPrompt

    @classmethod
    def pack(cls, region: Region) -> CompactRegion:
        """Return a region with its mask's run lengths."""
        if region.mask is None:
            return cls(region.box, None, (0, 0), region.given)
        height, width = region.mask.shape
        inside = region.mask.numpy().T.ravel()
        changes = np.flatnonzero(np.diff(inside, prepend=False))
        runs = np.diff(changes, prepend=0, append=inside.size).astype(np.int32)
        return cls(region.box, runs, (height, width), region.given)

    def unpack(self) -> Region:
        """Return the region with its mask's pixels."""
        if self.runs is None:
            return Region(self.box, None, self.given)
        inside = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(self.size[::-1])
        return Region(self.box, torch.from_numpy(np.ascontiguousarray(inside.T)), self.given)


@dataclass(frozen=True, eq=False)
class EvaluationRow:
    """A query of an evaluation set and its candidates, before any image is decoded.

    Inputs name their images by `image_keys` and hold no pixels.

    set: the name of the evaluation set. row: its row in the set's file, from 0.
    text: the query's text, without the region in words. published_text: the same as the published evaluation writes it.
    box_words: the region's box in words, as the published evaluation writes it; "" without a region.
    image: the content key of the query's image; None without one. size: its (height, width).
    compact_region: the region in little memory, see `region`; None without one.
    rankings: see `RankingSample`; a candidate with the right one's content is in none.
    further_images: content keys of the query's other images, behind the first.

    Example:
        >>> captions = EmbeddingInput("a cat"), EmbeddingInput("a dog")
        >>> row = EvaluationRow("scar", 3, "What?", "What?", "", None, None, None, captions, {"hit@1": (0, 1)})
        >>> row.key
        'scar/3'
    """

    set: str
    row: int
    text: str
    published_text: str
    box_words: str
    image: str | None
    size: tuple[int, int] | None
    compact_region: CompactRegion | None
    candidates: tuple[EmbeddingInput, ...]
    rankings: Mapping[str, tuple[int, ...]]
    further_images: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The content keys of all the query's images."""
        return () if self.image is None else (self.image, *self.further_images)

    @property
    def region(self) -> Region | None:
        """The query's region; its mask is decoded anew each time."""
        return None if self.compact_region is None else self.compact_region.unpack()

    @property
    def key(self) -> str:
        """The row's name among those of all sets."""
        return f"{self.set}/{self.row}"


class SetDescription(NamedTuple):
    """The name of an evaluation set, and the groups that its results are averaged in.

    benchmark: "scar", "mmeb" or another family. distribution: "IND" (in training's domain), "OOD" or "".

    Example:
        >>> SetDescription("VOC2007", "mmeb", meta_task="classification", distribution="OOD").benchmark
        'mmeb'
    """

    name: str
    benchmark: str
    meta_task: str = ""
    distribution: str = ""


@dataclass(frozen=True, eq=False)
class RankedSet:
    """An evaluation set whose inputs are indices into the distinct inputs of a whole evaluation.

    queries: the index of each row's query. candidates: the indices of each row's candidates, in the row's order.

    Example:
        >>> import torch
        >>> ranked = RankedSet(SetDescription("scar", "scar"), (), torch.zeros(0, dtype=torch.long), ())
        >>> ranked.about.name
        'scar'
    """

    about: SetDescription
    rows: tuple[EvaluationRow, ...]
    queries: Int[Tensor, " rows"]
    candidates: tuple[Int[Tensor, " candidates"], ...]


@dataclass(frozen=True, eq=False)
class InputBatch(TensorDataclass):
    """Distinct inputs to embed; empty where a rank has none left.

    keys: the inputs' content keys. sources: for messages, the first row in which each input occurs.
    inputs: the inputs as rows; None in an empty batch.

    Example:
        >>> len(InputBatch((), (), None))
        0
    """

    keys: tuple[str, ...]
    sources: tuple[str, ...]
    inputs: EncoderBatch | None

    def __len__(self) -> int:
        return len(self.keys)


class InputCollator(Protocol):
    """An interface by which an evaluation's data module makes the model's inputs (`connect(collator)`).

    Example:
        >>> missing = set(collator.missing_keys(keys))  # doctest: +SKIP
        >>> batch = collator.encoder_batch([item for key, item in zip(keys, items) if key in missing])
    """

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """Return the input to embed for a row's query, without pixels."""

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Return inputs, which hold their pixels, as rows of one batch, in order."""

    def missing_keys(self, keys: Sequence[str]) -> list[str]:
        """Return the content keys whose embeddings are not stored yet, in order."""
