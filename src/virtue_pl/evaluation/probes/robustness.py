"""Robustness of the ranking to imprecise prompts: a curve for each kind of perturbation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.evaluation.probes.perturbations import PERTURBATIONS
from virtue_pl.evaluation.settings import RobustnessOptions
from virtue_pl.evaluation.statistics.intervals import error_of_count
from virtue_pl.metrics.ranking import sample_ranks
from virtue_pl.preprocessing.contrastive_collator import content_id, evaluation_query
from virtue_pl.types import EmbeddingInput, RankingSample, VirtueError, VisualPrompt

WithPrompt = Callable[[RankingSample, VisualPrompt], EmbeddingInput]
"""(sample, prompt on its image) -> the query as the model reads it"""
Embed = Callable[[Sequence[EmbeddingInput]], Float[Tensor, "rows dim"]]
"""Unit embeddings of inputs, in order, as `Embedder.embed` gives them."""


def replace_prompt(sample: RankingSample, prompt: VisualPrompt) -> EmbeddingInput:
    """Return the sample's query with another prompt, for a model whose formatter describes it and gives its frame."""
    return replace(sample.query, prompt=prompt, extra_prompts=())


class PerturbedQuery(NamedTuple):
    """Query of a sample with a perturbed prompt.

    Example:
        >>> queries = list(perturbed_queries(sample, ["box_jitter"], seed=0))  # doctest: +SKIP
        >>> queries[0].level
        0
    """

    sample: RankingSample
    kind: str
    level: float
    query: EmbeddingInput


@dataclass
class Tally:
    """Sums over the queries of one level.

    n: queries. hits: queries whose right candidate came first. same: queries whose first candidate is that of the
    unperturbed prompt. cosine: sum of the cosines of the two prompts' embeddings. chance: sum of a random ranking's
    chances to be right.

    Example:
        >>> Tally(n=4, hits=3, same=4, cosine=3.8).row(level=0.1)["hit@1"]
        0.75
    """

    n: int = 0
    hits: int = 0
    same: int = 0
    cosine: float = 0.0
    chance: float = 0.0

    def row(self, level: float) -> dict[str, float | None]:
        """Return the means of a level, with the standard error of hit@1; None for that of a single query."""
        return {
            "level": level,
            "n": self.n,
            "hit@1": self.hits / self.n,
            "standard_error": error_of_count(self.hits, self.n),
            "same_first": self.same / self.n,
            "cosine": self.cosine / self.n,
            "chance": self.chance / self.n,
        }


@dataclass
class Robustness:
    """Tallies by task, kind and level; `without_region` counts samples without a region, which are left out.

    Example:
        >>> found = Robustness()
        >>> found.tally("scar/ADE20K", "click_offset", level=0).n = 1
        >>> found.as_json()["scar/ADE20K"]["click_offset"]["unit"]
        'click moved, in pixels'
    """

    tallies: dict[str, dict[str, dict[float, Tally]]] = field(default_factory=dict)
    without_region: int = 0

    def tally(self, task: str, kind: str, level: float) -> Tally:
        """Return the tally of a level, a new one where there is none."""
        return self.tallies.setdefault(task, {}).setdefault(kind, {}).setdefault(level, Tally())

    def as_json(self) -> dict[str, Any]:
        """Return task -> kind -> {mode, unit, neutral, levels}.

        A level has level, n, hit@1, standard_error, same_first, cosine and chance.
        """
        return {
            task: {kind: describe_kind(kind, levels) for kind, levels in kinds.items()}
            for task, kinds in sorted(self.tallies.items())
        }


def describe_kind(kind: str, levels: dict[float, Tally]) -> dict[str, Any]:
    """Return a kind's settings and its levels, for JSON."""
    about = PERTURBATIONS[kind]
    return {
        "mode": about.mode,
        "unit": about.unit,
        "neutral": about.neutral,
        "levels": [levels[level].row(level) for level in sorted(levels)],
    }


def robustness(
    embed: Embed,
    samples: Iterable[RankingSample],
    kinds: Sequence[str] = tuple(PERTURBATIONS),
    seed: int = RobustnessOptions.seed,
    ranking: str = "hit@1",
    group: int = 8,
    with_prompt: WithPrompt = replace_prompt,
) -> Robustness:
    """Rank every sample with a region at every level of the given kinds.

    Random draws depend on the seed, the sample's key and the kind alone. `group` samples are embedded together, with
    all their prompts, so that the image towers run once for each image. with_prompt: gives a sample's query with a
    prompt the form that the evaluation gives it, so that the neutral level is what the evaluation ranks.

    Raises VirtueError for an unknown kind, and where no sample has a region, or one lacks the ranking.
    """
    for kind in kinds:
        if kind not in PERTURBATIONS:
            raise VirtueError(f"kinds: {kind!r}, expected some of {', '.join(PERTURBATIONS)}")
    found = Robustness()
    source = iter(samples)
    while together := tuple(islice(source, group)):
        pointed = [sample for sample in together if sample.region is not None]
        found.without_region += len(together) - len(pointed)
        queries = [query for sample in pointed for query in perturbed_queries(sample, kinds, seed, with_prompt)]
        update_tallies(found, queries, embed, ranking)
    if not found.tallies:
        raise VirtueError(
            f"robustness: none of {found.without_region} samples can be pointed at in a way that {', '.join(kinds)}"
            " perturb: give a set with regions"
        )
    return found


def perturbed_queries(
    sample: RankingSample, kinds: Sequence[str], seed: int, with_prompt: WithPrompt = replace_prompt
) -> Iterator[PerturbedQuery]:
    """Return the sample's query at every level of every kind that its region has data for.

    At the neutral level the prompt is the region's own, bit by bit.
    """
    size = (sample.query.images[0].shape[1], sample.query.images[0].shape[2])
    for kind in kinds:
        about = PERTURBATIONS[kind]
        if about.mode == "mask" and (sample.region is None or sample.region.mask is None):
            continue
        own = evaluation_query(sample, about.mode).prompt
        if about.mode == "box" and not len(own.boxes):  # clicks stand for the box
            continue
        for level in about.levels:
            generator = torch.Generator().manual_seed(content_id(sample.key, kind, str(seed)))
            prompt = own if level == about.neutral else about.perturb(own, level, size, generator)
            yield PerturbedQuery(sample, kind, level, with_prompt(sample, prompt))


def update_tallies(found: Robustness, queries: Sequence[PerturbedQuery], embed: Embed, ranking: str) -> None:
    """Embed queries and their candidates, rank them, and add the outcomes to the tallies."""
    if not queries:
        return
    samples = {id(one.sample): one.sample for one in queries}
    candidates = [item for sample in samples.values() for item in sample.candidates]
    embeddings = embed([*(one.query for one in queries), *candidates])
    lists = dict(
        zip(
            samples,
            embeddings[len(queries) :].split([len(sample.candidates) for sample in samples.values()]),
            strict=True,
        )
    )
    # as in the evaluation: summed in float64, rounded once
    scores = [
        torch.linalg.vecdot(lists[id(one.sample)].double(), query.double()).float()
        for one, query in zip(queries, embeddings, strict=False)
    ]
    ranks = sample_ranks([one.sample for one in queries], scores).in_ranking(ranking).tolist()
    if len(ranks) != len(queries):
        missing = next(sample for sample in samples.values() if ranking not in sample.rankings)
        raise VirtueError(
            f"{missing.key} has the rankings {', '.join(missing.rankings)}, expected {ranking}: give another `ranking`"
        )
    unperturbed = {
        (id(one.sample), one.kind): row
        for row, one in enumerate(queries)
        if one.level == PERTURBATIONS[one.kind].neutral
    }
    for row, (one, rank) in enumerate(zip(queries, ranks, strict=True)):
        base, entry = unperturbed[id(one.sample), one.kind], found.tally(one.sample.task, one.kind, one.level)
        entry.n += 1
        entry.hits += rank < 1
        entry.same += bool(scores[row].argmax() == scores[base].argmax())
        entry.cosine += float(embeddings[row] @ embeddings[base])
        entry.chance += 1 / len(one.sample.rankings[ranking])
