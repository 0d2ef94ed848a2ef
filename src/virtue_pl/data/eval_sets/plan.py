"""The plan of an evaluation: every distinct input once, over all sets.

Batches are the same in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, SetDescription

PIXELS_PER_TOKEN = 28 * 28
CHARACTERS_PER_TOKEN = 4
"""Rough values, for sorting by length."""


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """The distinct inputs of an evaluation, and the sets that refer to them by index.

    Example:
        >>> plan = make_plan({}, query=str, sizes={}, missing={"RefCOCO+": "no files"}, batch_size=8)
        >>> len(plan.inputs), plan.batches, plan.missing
        (0, (), {'RefCOCO+': 'no files'})
    """

    sets: tuple[RankedSet, ...]
    inputs: tuple[EmbeddingInput, ...]
    """Every distinct input."""
    keys: tuple[str, ...]
    """The content key of every distinct input."""
    sources: tuple[str, ...]
    """First occurrence of every distinct input, for messages."""
    total: int
    """Number of inputs, with repetitions."""
    total_images: int
    """Number of uses of images, with repetitions."""
    missing: Mapping[str, str]
    """Sets that are left out, with the reason."""
    batches: tuple[tuple[int, ...], ...]
    """Indices of inputs. Inputs with the same image are in one batch, however many they are."""
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of rows that are not ranked, by set and reason."""

    @property
    def images(self) -> int:
        """Return the number of distinct images."""
        return len({key for item in self.inputs for key in item.image_keys})

    def fingerprint(self) -> str:
        """Return a fingerprint that changes with any input, its index in a candidate list, or a right answer."""
        digest, texts = hashlib.sha256("\n".join(self.keys).encode()), dict[int, str]()
        for ranked in self.sets:
            digest.update(f"{ranked.about.name} {ranked.queries.tolist()}".encode())
            for row, candidates in zip(ranked.rows, ranked.candidates, strict=True):
                named = [
                    f"{name} {texts.get(id(indices)) or texts.setdefault(id(indices), str(indices))}"
                    for name, indices in row.rankings.items()
                ]
                digest.update(f"{row.row} {len(candidates)} {named} ".encode() + candidates.numpy().tobytes())
        return digest.hexdigest()


def make_plan(
    found: Mapping[SetDescription, Sequence[EvaluationRow]],
    query: Callable[[EvaluationRow], EmbeddingInput],
    sizes: Mapping[str, tuple[int, int]],
    missing: Mapping[str, str],
    batch_size: int,
    left_out: Mapping[str, Mapping[str, int]] | None = None,
) -> EvaluationPlan:
    """Return the plan over the rows of all sets.

    Args:
        found: the rows of every set.
        query: returns the input that is embedded for a row.
        sizes: (height, width) of each image by its key.
        missing: sets that are left out, with the reason.
        batch_size: inputs of a batch.
        left_out: the number of rows that are not ranked, by set and reason.
    """
    distinct = DistinctInputs()
    sets = []
    for about, rows in found.items():
        queries = [distinct.number(query(row), f"{about.name} row {row.row}") for row in rows]
        candidates = tuple(candidate_indices(distinct, row) for row in rows)
        sets.append(RankedSet(about, tuple(rows), torch.tensor(queries, dtype=torch.long), candidates))
    inputs = tuple(distinct.inputs)
    batches = make_batches(inputs, [estimate_tokens(item, sizes) for item in inputs], batch_size)
    return EvaluationPlan(
        tuple(sets),
        inputs,
        tuple(distinct.numbers),
        tuple(distinct.sources),
        distinct.total,
        distinct.total_images,
        dict(missing),
        batches,
        dict(left_out or {}),
    )


def candidate_indices(distinct: DistinctInputs, row: EvaluationRow) -> Int[Tensor, " candidates"]:
    """Return the index of each candidate of a row among the distinct inputs."""
    found = [
        distinct.number(item, f"{row.set} row {row.row}, candidate {index}")
        for index, item in enumerate(row.candidates)
    ]
    return torch.tensor(found, dtype=torch.long)


class DistinctInputs:
    """Inputs, each once, numbered by content.

    Example:
        >>> distinct = DistinctInputs()
        >>> [distinct.number(EmbeddingInput(text), "set row 0") for text in ("a cat", "a dog", "a cat")]
        [0, 1, 0]
    """

    def __init__(self) -> None:
        self.inputs: list[EmbeddingInput] = []
        self.sources: list[str] = []
        self.numbers: dict[str, int] = {}
        self.total = self.total_images = 0
        self._objects: dict[int, int] = {}

    def number(self, item: EmbeddingInput, source: str) -> int:
        """Return the index of an input, which is added if it is new; `source` says where it occurs."""
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
    """Return a key of an input's content: the same for the same text, images and prompts."""
    digest = hashlib.blake2b(repr((item.text, item.image_keys)).encode(), digest_size=16)
    for prompt in item.prompts:
        if not prompt.is_empty:
            for tensor in (prompt.boxes, prompt.points, prompt.point_labels, prompt.masks):
                digest.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def estimate_tokens(item: EmbeddingInput, sizes: Mapping[str, tuple[int, int]]) -> int:
    """Return about how many tokens an input has; `sizes` are (height, width) of images by key."""
    pixels = sum(height * width for height, width in (sizes[key] for key in item.image_keys))
    return len(item.text) // CHARACTERS_PER_TOKEN + pixels // PIXELS_PER_TOKEN


def make_batches(
    inputs: Sequence[EmbeddingInput], lengths: Sequence[int], batch_size: int
) -> tuple[tuple[int, ...], ...]:
    """Return indices of inputs in batches of about `batch_size`, the longest first.

    So little is padded, and a lack of memory shows at once. Inputs with the same image stay together, so that it is
    read once; a batch is larger where one image has more.
    """
    groups: dict[object, list[int]] = {}
    for number, item in enumerate(inputs):
        groups.setdefault(item.image_keys or number, []).append(number)
    batches: list[list[int]] = []
    open_batch: list[int] = []
    batch_has_images = True
    for group in sorted(
        groups.values(),
        key=lambda group: (not inputs[group[0]].image_keys, -max(lengths[number] for number in group), group[0]),
    ):
        has_images = bool(inputs[group[0]].image_keys)
        if open_batch and (len(open_batch) + len(group) > batch_size or has_images != batch_has_images):
            batches.append(open_batch)
            open_batch = []
        open_batch, batch_has_images = [*open_batch, *group], has_images
    return tuple(map(tuple, [*batches, *([open_batch] if open_batch else [])]))
