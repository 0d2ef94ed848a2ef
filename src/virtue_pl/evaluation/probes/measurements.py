"""Measurements beside an evaluation's ranking: cost of the model, and robustness to imprecise prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.probes.cost import measure_cost
from virtue_pl.evaluation.probes.robustness import Embed, WithPrompt, robustness
from virtue_pl.evaluation.retrieval.query_collator import EvaluationCollator
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, RankingSample, VirtueError, VisualPrompt

SIZE = (480, 640)
"""(height, width) in pixels of the image on which cost is measured where no set has one."""
Cost = Mapping[str, Any]


class Pixels(Protocol):
    """Decoded images by their content key, as the model reads them.

    Example:
        >>> library.pixels(key).shape  # doctest: +SKIP
        torch.Size([3, 480, 640])
    """

    def pixels(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image."""
        ...


class Measurements(NamedTuple):
    """Measured cost and robustness, each None where it was not measured.

    cost: the result of `measure_cost`. robustness: task -> kind -> levels, the result of `Robustness.as_json`.

    Example:
        >>> Measurements().as_json()
        {}
    """

    cost: Cost | None = None
    robustness: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the measurements by name."""
        return {name: dict(found) for name, found in self._asdict().items() if found is not None}


def cost_of(embedder: Embedder, sets: Sequence[RankedSet], library: Pixels) -> Cost:
    """Measure the model's cost on the first image of a query of the sets."""
    keys = (row.image for ranked in sets for row in ranked.rows if row.image is not None)
    key = next(keys, None)
    noise = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return measure_cost(embedder, noise if key is None else library.pixels(key))


@dataclass(frozen=True, eq=False)
class RegionSample(RankingSample):
    """A query with a region, decoded, and the row that it was read from, which has the published texts, too.

    Example:
        >>> sample = RegionSample("scar/3", "scar", query, candidates, rankings, region, row)  # doctest: +SKIP
        >>> queries_in_format(collator)(sample, prompt).text  # doctest: +SKIP
        '<|image_pad|>  Find it.\\nReferring object bbox: [12, 30, 80, 64]'
    """

    row: EvaluationRow | None = None


def queries_in_format(collator: EvaluationCollator) -> WithPrompt:
    """Return what gives a `RegionSample`'s query any prompt, in the form in which the evaluation ranks it."""

    def with_prompt(sample: RankingSample, prompt: VisualPrompt) -> EmbeddingInput:
        assert isinstance(sample, RegionSample) and sample.row is not None
        return replace(collator.prompted_query(sample.row, prompt), images=sample.query.images)

    return with_prompt


def robustness_of(
    embed: Embed, collator: EvaluationCollator, sets: Sequence[RankedSet], library: Pixels, rows: int
) -> dict[str, Any]:
    """Measure the curves of each set with regions, over its first `rows` queries, in the evaluation's query format."""
    samples, with_prompt = region_samples(sets, library, rows), queries_in_format(collator)
    return robustness(embed, samples, with_prompt=with_prompt).as_json()


def region_samples(sets: Sequence[RankedSet], library: Pixels, rows: int) -> Iterator[RegionSample]:
    """Return the first `rows` queries with a region of each set, their images decoded."""
    for ranked in sets:
        for row in islice(rows_with_regions(ranked.rows), rows):
            image = str(row.image)
            query = EmbeddingInput(row.text, (library.pixels(image),), image_keys=(image,))
            task = f"{ranked.about.benchmark}/{ranked.about.name}"
            yield RegionSample(row.key, task, query, row.candidates, row.rankings, row.region, row)


def rows_with_regions(rows: Iterable[EvaluationRow]) -> Iterator[EvaluationRow]:
    """Return the rows whose query has a region."""
    return (row for row in rows if row.compact_region is not None)


def check_regions(sets: Sequence[RankedSet]) -> None:
    """Raise VirtueError where no query has a region."""
    if not any(True for ranked in sets for _ in rows_with_regions(ranked.rows)):
        names = ", ".join(ranked.about.name for ranked in sets)
        raise VirtueError(
            f"robustness: no query of {names} has a region, expected a set of SCaR or SCaR-mini: leave `robustness` out"
        )
