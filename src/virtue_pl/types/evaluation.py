"""Rows, sets and inputs of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Int
from torch import Tensor

from virtue_pl.types.batches import (
    EncoderBatch,
)
from virtue_pl.types.prompts import Region
from virtue_pl.types.samples import EmbeddingInput
from virtue_pl.types.tensors import TensorDataclass


@dataclass(frozen=True, eq=False)
class EvaluationRow:
    """A query of an evaluation set and its candidates, before any image is decoded.

    Inputs name their images by `image_keys` and hold no pixels. `row` counts from 0 in the set's file.
    text: of the query, without the region in words; published_text: the same as the published evaluation writes it.
    box_words: the region's box as the published evaluation says it; "" without a region. size: (height, width) of the
    query's image.
    rankings: see `RankingSample`; a candidate with the right one's content is in none.
    """

    set: str
    row: int
    text: str
    published_text: str
    box_words: str
    image: str | None
    size: tuple[int, int] | None
    region: Region | None
    candidates: tuple[EmbeddingInput, ...]
    rankings: Mapping[str, tuple[int, ...]]

    @property
    def key(self) -> str:
        return f"{self.set}/{self.row}"


class SetDescription(NamedTuple):
    """An evaluation set. benchmark: "scar", "mmeb" or another family. distribution: "IND", "OOD" or ""."""

    name: str
    benchmark: str
    meta_task: str = ""
    distribution: str = ""


@dataclass(frozen=True, eq=False)
class RankedSet:
    """A set whose inputs are numbers among all distinct inputs of an evaluation. candidates: of every row, in its
    order.
    """

    about: SetDescription
    rows: tuple[EvaluationRow, ...]
    queries: Int[Tensor, " rows"]
    candidates: tuple[Int[Tensor, " candidates"], ...]


@dataclass(frozen=True, eq=False)
class InputBatch(TensorDataclass):
    """Distinct inputs to embed. keys: their content keys; sources: for messages, where each stands first. Empty where a
    rank has nothing left.
    """

    keys: tuple[str, ...]
    sources: tuple[str, ...]
    inputs: EncoderBatch | None

    def __len__(self) -> int:
        return len(self.keys)


class InputCollator(Protocol):
    """What an evaluation's data learns from the model (`connect(collator)`)."""

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """What is embedded of a row's query, without pixels."""

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Inputs with their pixels, as rows."""

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of the content keys whose embeddings are still wanted."""
