"""Comparison of a model with recorded outputs: the largest difference of each quantity of each case."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.parity.evaluation_rows import read_evaluations
from virtue_pl.parity.golden import FORWARD, Case, read_cases
from virtue_pl.parity.gradients import GRADIENTS, gradient_parity
from virtue_pl.parity.hooks import TOKENS, batch_of, observe, real_tokens, subsample
from virtue_pl.parity.result import ParityRow
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import VirtueError

STRIDED = re.compile(r"^(?P<name>.+)_s(?P<stride>\d+)$")
OTHER_STATE = "fresh."
"""Prefix of quantities of a process's first forward, which are not reproduced (golden's README)."""


@dataclass(frozen=True)
class Tolerances:
    """Largest allowed absolute differences, in float32; tokens and positions must be equal.

    Other quantities have no tolerance: their difference is reported, and not judged.

    Example:
        >>> Tolerances(embedding=1e-5).of("embedding")
        1e-05
    """

    embedding: float = 1e-4
    segment_tokens: float = 1e-3
    gradients: float = 1e-3

    def of(self, name: str) -> float | None:
        """Return the tolerance of a recorded quantity; None for one that is not judged."""
        exact = {"input_ids": 0.0, "position_ids": 0.0}
        return {"embedding": self.embedding, "seg_tokens": self.segment_tokens, **exact}.get(name)


def parity(
    model: EmbeddingModel,
    folder: Path,
    tolerances: Tolerances,
    report: Callable[[ParityRow], None] = lambda row: None,
    max_pixels: int = MAX_PIXELS,
) -> list[ParityRow]:
    """Return every comparison that the folder's files allow; `report` is called with each as soon as it is made.

    Raises VirtueError where the folder holds no recording, and DataError for an image of more than `max_pixels`.
    """
    rows = []
    for row in comparisons(model, folder, tolerances, max_pixels):
        report(row)
        rows.append(row)
    if not any(row.tolerance is not None for row in rows):
        raise VirtueError(
            f"{folder} has no recorded case to be matched, expected {FORWARD}.json beside its model: record one by"
            " `--record`"
        )
    return rows


def comparisons(
    model: EmbeddingModel, folder: Path, tolerances: Tolerances, max_pixels: int = MAX_PIXELS
) -> Iterator[ParityRow]:
    """Yield the comparisons of forward passes, of the contrastive step, and of evaluations' rows."""
    if (folder / f"{FORWARD}.json").is_file():
        for case in read_cases(folder, max_pixels):
            if case.compare:
                yield from compare_case(model, case, tolerances)
    if (folder / f"{GRADIENTS}.json").is_file():
        yield from gradient_parity(model, folder, tolerances.embedding, tolerances.gradients, max_pixels)
    for case in read_evaluations(folder, max_pixels):
        yield compare_rows(model, case, tolerances)


def compare_case(model: EmbeddingModel, case: Case, tolerances: Tolerances) -> Iterator[ParityRow]:
    """Compare all recorded quantities of a case, in the order in which a model computes them.

    Raises VirtueError where no embedding is recorded.
    """
    found = {name: value.cpu() for name, value in observe(model, case.items).items()}
    names = [name for name in case.outputs if recorded_name(name, found) in found and name not in case.not_compared]
    if "embedding" not in names:
        raise VirtueError(f"{case.name}: no embedding is recorded, expected the tensor {case.name}/embedding")
    order = list(found)
    for name in sorted(names, key=lambda name: order.index(recorded_name(name, found))):
        ours = recorded_name(name, found)
        if name.endswith("attention_mask") or (len(case.items) > 1 and ours == "position_ids"):
            continue
        match = STRIDED.match(name)
        value = subsample(found[ours], int(match["stride"])) if match else real_tokens(ours, found)
        wanted = real_tokens(name, case.outputs) if name in TOKENS else case.outputs[name]
        yield compare(case.name, name, value, wanted, tolerances.of(name))


def recorded_name(name: str, found: Mapping[str, Tensor]) -> str:
    """Return a recorded quantity's name without its stride."""
    match = STRIDED.match(name)
    return match["name"] if match and match["name"] in found else name


def compare(case: str, name: str, found: Tensor, wanted: Tensor, tolerance: float | None) -> ParityRow:
    """Compare one quantity; one of another shape has an infinite difference."""
    if found.shape != wanted.shape:
        return ParityRow(
            case, f"{name} {list(found.shape)}, recorded {list(wanted.shape)}", float("inf"), float("nan"), tolerance
        )
    one, other = found.double().flatten(), wanted.double().flatten()
    difference = (one - other).abs().max().item() if len(one) else 0.0
    return ParityRow(case, name, difference, cosine_similarity(one, other, dim=0).item(), tolerance)


def compare_rows(model: EmbeddingModel, case: Case, tolerances: Tolerances) -> ParityRow:
    """Compare embeddings of an evaluation's rows, each encoded alone."""
    with torch.no_grad():
        rows = torch.cat([model.encode(batch_of(model, [item])).cpu() for item in case.items])
    return compare(case.name, f"embedding of {len(rows)} rows", rows, case.outputs["embedding"], tolerances.embedding)
