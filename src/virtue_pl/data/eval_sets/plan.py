"""What an evaluation embeds: every distinct input once, over all sets, in batches that every process knows alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, SetDescription

PIXELS_A_TOKEN = 28 * 28
LETTERS_A_TOKEN = 4
"""Roughly, for sorting by length."""


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """inputs, keys, sources: of every distinct input, what it is, its content key, and where it stands first.

    total: inputs with repetitions. total_images: uses of images with repetitions. missing: sets that are left out, with
    the reason.
    batches: numbers of inputs. Inputs with the same image stand in one batch, however many they are.
    """

    sets: tuple[RankedSet, ...]
    inputs: tuple[EmbeddingInput, ...]
    keys: tuple[str, ...]
    sources: tuple[str, ...]
    total: int
    total_images: int
    missing: Mapping[str, str]
    batches: tuple[tuple[int, ...], ...]

    @property
    def images(self) -> int:
        """How many distinct images there are."""
        return len({key for item in self.inputs for key in item.image_keys})

    def fingerprint(self) -> str:
        """Changes with any input, its place in a candidate list, or a right answer."""
        digest, said = hashlib.sha256("\n".join(self.keys).encode()), dict[int, str]()
        for ranked in self.sets:
            digest.update(f"{ranked.about.name} {ranked.queries.tolist()}".encode())
            for row, candidates in zip(ranked.rows, ranked.candidates, strict=True):
                named = [
                    f"{name} {said.get(id(places)) or said.setdefault(id(places), str(places))}"
                    for name, places in row.rankings.items()
                ]
                digest.update(f"{row.row} {len(candidates)} {named} ".encode() + candidates.numpy().tobytes())
        return digest.hexdigest()


def make_plan(
    found: Mapping[SetDescription, Sequence[EvaluationRow]],
    query: Callable[[EvaluationRow], EmbeddingInput],
    sizes: Mapping[str, tuple[int, int]],
    missing: Mapping[str, str],
    batch_size: int,
) -> EvaluationPlan:
    """The plan over the rows of all sets; `query` gives what is embedded of a row, `sizes` of its images."""
    distinct = DistinctInputs()
    sets = []
    for about, rows in found.items():
        queries = [distinct.number(query(row), f"{about.name} row {row.row}") for row in rows]
        candidates = tuple(candidate_numbers(distinct, row) for row in rows)
        sets.append(RankedSet(about, tuple(rows), torch.tensor(queries, dtype=torch.long), candidates))
    inputs = tuple(distinct.inputs)
    batches = grouped_batches(inputs, [length(item, sizes) for item in inputs], batch_size)
    return EvaluationPlan(
        tuple(sets),
        inputs,
        tuple(distinct.numbers),
        tuple(distinct.sources),
        distinct.total,
        distinct.total_images,
        dict(missing),
        batches,
    )


def candidate_numbers(distinct: DistinctInputs, row: EvaluationRow) -> Int[Tensor, " candidates"]:
    found = [
        distinct.number(item, f"{row.set} row {row.row}, candidate {place}")
        for place, item in enumerate(row.candidates)
    ]
    return torch.tensor(found, dtype=torch.long)


class DistinctInputs:
    """Numbers inputs by content."""

    def __init__(self) -> None:
        self.inputs: list[EmbeddingInput] = []
        self.sources: list[str] = []
        self.numbers: dict[str, int] = {}
        self.total = self.total_images = 0
        self._objects: dict[int, int] = {}

    def number(self, item: EmbeddingInput, source: str) -> int:
        self.total += 1
        self.total_images += len(item.image_keys)
        found = self._objects.get(id(item))
        if found is None:
            found = self.numbers.setdefault(input_key(item), len(self.inputs))
            if found == len(self.inputs):
                self.inputs.append(item)
                self.sources.append(source)
            if self.inputs[found] is item:  # only what stays alive may be known by its identity
                self._objects[id(item)] = found
        return found


def input_key(item: EmbeddingInput) -> str:
    """The same for the same text, images and prompts."""
    digest = hashlib.blake2b(repr((item.text, item.image_keys)).encode(), digest_size=16)
    for prompt in item.prompts:
        if not prompt.is_empty:
            for tensor in (prompt.boxes, prompt.points, prompt.point_labels, prompt.masks):
                digest.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def length(item: EmbeddingInput, sizes: Mapping[str, tuple[int, int]]) -> int:
    """About how many tokens it is."""
    pixels = sum(height * width for height, width in (sizes[key] for key in item.image_keys))
    return len(item.text) // LETTERS_A_TOKEN + pixels // PIXELS_A_TOKEN


def grouped_batches(
    inputs: Sequence[EmbeddingInput], lengths: Sequence[int], batch_size: int
) -> tuple[tuple[int, ...], ...]:
    """Numbers of inputs in batches of about `batch_size`, the longest first, so that little is padded and memory is
    tried at once.

    What shows the same image stays together, so that it is read once; a batch is larger where one image has more.
    """
    groups: dict[object, list[int]] = {}
    for number, item in enumerate(inputs):
        groups.setdefault(item.image_keys or number, []).append(number)
    batches: list[list[int]] = []
    open_batch: list[int] = []
    shown = True
    for group in sorted(
        groups.values(),
        key=lambda group: (not inputs[group[0]].image_keys, -max(lengths[number] for number in group), group[0]),
    ):
        imaged = bool(inputs[group[0]].image_keys)
        if open_batch and (len(open_batch) + len(group) > batch_size or imaged != shown):
            batches.append(open_batch)
            open_batch = []
        open_batch, shown = [*open_batch, *group], imaged
    return tuple(map(tuple, [*batches, *([open_batch] if open_batch else [])]))
