"""Ranks of the right candidate: one vectorised kernel, and tables of ranks (`rank_metrics` collects them).

A rank counts from 0. A candidate that scores as high as the right one is ranked before it, so a model that scores all
candidates alike is never right, and no position in a list is favoured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from virtue_pl.types import RankingSample, VirtueError


def gold_ranks(
    scores: Float[Tensor, "queries candidates"],
    valid: Bool[Tensor, "queries candidates"] | None,
    gold: Int[Tensor, " queries"],
) -> Int[Tensor, " queries"]:
    """Return each query's rank: the number of other candidates that score at least as high as the right one.

    valid: which candidates are real; None means all. gold: the column of the right one, which must be real.
    Raises VirtueError if a real candidate's score is not a number.
    """
    real = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    broken = (scores.isnan() & real).any(dim=1)
    if broken.any():
        rows = broken.nonzero().flatten().tolist()
        raise VirtueError(
            f"scores of {len(rows)} of {len(scores)} queries are not numbers (first: row {rows[0]}), expected finite"
            " embeddings: the training diverged, lower `optimization.lr` and test an earlier checkpoint"
        )
    others = real.scatter(1, gold[:, None], False)
    return ((scores >= scores.gather(1, gold[:, None])) & others).sum(dim=1)


def rank_candidates(
    scores: Float[Tensor, "queries candidates"], gold: Int[Tensor, " queries"] | None = None
) -> Int[Tensor, "queries candidates"]:
    """Return the columns of the candidates from best to worst; candidates of equal score keep their order.

    gold: the column of the right candidate, which comes last among its equals; None treats all alike.
    """
    if gold is None:
        return scores.argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(scores.shape[1] - 1, device=scores.device)
    others = columns + (columns >= gold[:, None])
    gold_last = torch.cat([others, gold[:, None]], dim=1)
    return gold_last.gather(1, scores.gather(1, gold_last).argsort(dim=1, descending=True, stable=True))


def pad_lists(lists: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "lists longest"], Bool[Tensor, "lists longest"]]:
    """Return lists of indices of different length as one tensor, padded with 0, and which of its entries are real."""
    distinct = {id(items): items for items in lists}  # many queries may share one list
    numbers = {identity: number for number, identity in enumerate(distinct)}
    longest = max(map(len, lists), default=0)
    table = torch.tensor(
        [[*items, *[-1] * (longest - len(items))] for items in distinct.values()], dtype=torch.long
    ).reshape(len(distinct), longest)
    indices = table[[numbers[id(items)] for items in lists]]
    return indices.clamp(min=0), indices >= 0


def set_blind_scores(
    candidates: Float[Tensor, "*lists candidates dim"], valid: Bool[Tensor, "*lists candidates"] | None = None
) -> Float[Tensor, "*lists candidates"]:
    """Return each candidate's cosine to the mean of the others of its list: a baseline without image and query.

    Above chance, it shows an evaluation set whose wrong candidates were all derived from the right one.
    """
    exact = candidates.cpu().double()  # of two candidates, both have the same cosine
    real = exact if valid is None else exact * valid.cpu()[..., None]
    return cosine_similarity(real, real.sum(dim=-2, keepdim=True) - real, dim=-1).to(candidates)


class SampleRanks(NamedTuple):
    """A table by columns, with one entry for each ranking of each sample.

    candidates: the length of the ranked list. ranks: of the right candidate, from 0.

    Example:
        >>> ranks = SampleRanks(("scar",) * 2, ("hit@1", "object"), ("scar/0",) * 2, (10, 4), torch.tensor([3, 0]))
        >>> ranks.in_ranking("object")
        tensor([0])
    """

    tasks: tuple[str, ...]
    rankings: tuple[str, ...]
    keys: tuple[str, ...]
    candidates: tuple[int, ...]
    ranks: Int[Tensor, " entries"]

    def in_ranking(self, ranking: str) -> Int[Tensor, " samples"]:
        """Return the ranks in the ranking of that name, one a sample that has it."""
        return self.ranks[[row for row, name in enumerate(self.rankings) if name == ranking]]


class _Lists(NamedTuple):
    """Every ranking of every sample, one a row. samples: the index of each ranking's sample."""

    samples: Int[Tensor, " lists"]
    indices: Int[Tensor, "lists longest"]
    valid: Bool[Tensor, "lists longest"]


def sample_ranks(samples: Sequence[RankingSample], scores: Sequence[Float[Tensor, " candidates"]]) -> SampleRanks:
    """Return the right candidate's rank in each ranking of each sample.

    scores: of each sample's candidates, in the sample's order.
    """
    table = _stack(samples, scores)
    lists = _lists(samples, table.device)
    return _entries(
        samples, gold_ranks(table[lists.samples].gather(1, lists.indices), lists.valid, torch.zeros_like(lists.samples))
    )


def set_blind_ranks(
    samples: Sequence[RankingSample], candidates: Sequence[Float[Tensor, "candidates dim"]]
) -> SampleRanks:
    """Return the ranks of `sample_ranks` by `set_blind_scores` within each ranking's own list.

    candidates: the embeddings of each sample's candidates, in the sample's order.
    """
    table = _stack(samples, candidates)
    lists = _lists(samples, table.device)
    scores = set_blind_scores(table[lists.samples[:, None], lists.indices], lists.valid)
    return _entries(samples, gold_ranks(scores, lists.valid, torch.zeros_like(lists.samples)))


def _stack(
    samples: Sequence[RankingSample], rows: Sequence[Float[Tensor, "candidates ..."]]
) -> Float[Tensor, "samples longest ..."]:
    found, expected = [len(row) for row in rows], [len(sample.candidates) for sample in samples]
    if found != expected:
        raise VirtueError(
            f"{len(found)} samples are scored on {found} candidates, expected {len(expected)} samples with {expected}"
        )
    return pad_sequence(list(rows), batch_first=True) if rows else torch.zeros(0, 0)


def _lists(samples: Sequence[RankingSample], device: torch.device) -> _Lists:
    owners = [row for row, sample in enumerate(samples) for _ in sample.rankings]
    indices, valid = pad_lists([items for sample in samples for items in sample.rankings.values()])
    return _Lists(torch.tensor(owners, dtype=torch.long, device=device), indices.to(device), valid.to(device))


def _entries(samples: Sequence[RankingSample], ranks: Int[Tensor, " entries"]) -> SampleRanks:
    named = [(sample, name, items) for sample in samples for name, items in sample.rankings.items()]
    return SampleRanks(
        tuple(sample.task for sample, _, _ in named),
        tuple(name for _, name, _ in named),
        tuple(sample.key for sample, _, _ in named),
        tuple(len(items) for _, _, items in named),
        ranks,
    )


class RankRow(NamedTuple):
    """One rank: of one sample, in one mode, by one ranking, among `candidates` candidates.

    image: key of the query's image, by which queries are clustered; "" without one, or where it is not recorded.
    content: checksum of the image, the region and the candidates; "" where it is not recorded.

    Example:
        >>> RankRow("scar", "box", "hit@1", "scar/0", rank=3, candidates=10).rank
        3
    """

    task: str
    mode: str
    ranking: str
    key: str
    rank: int
    candidates: int
    image: str = ""
    content: str = ""


@final
class RankRows:
    """Rows sorted by task, mode, ranking and key, in whatever order they came.

    Of rows that are equal in these, the worst rank stays.

    Example:
        >>> rows = RankRows([RankRow("scar", "box", "hit@1", f"scar/{row}", row, 10) for row in (1, 0)])
        >>> rows.ranks("scar", "box", "hit@1")
        {'scar/0': 0, 'scar/1': 1}
    """

    def __init__(self, rows: Iterable[RankRow]) -> None:
        self.rows = list({row[:4]: row for row in sorted(rows)}.values())

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RankRow]:
        return iter(self.rows)

    def with_images(self, images: Mapping[tuple[str, str], str]) -> RankRows:
        """Return the rows with the key of each query's image. images: by task and key."""
        return RankRows(row._replace(image=images.get((row.task, row.key), row.image)) for row in self.rows)

    def groups(self) -> dict[tuple[str, str, str], list[RankRow]]:
        """Return the rows of each (task, mode, ranking)."""
        return {group: list(rows) for group, rows in groupby(self.rows, key=lambda row: row[:3])}

    def ranks(self, task: str, mode: str, ranking: str) -> dict[str, int]:
        """Return the rank of each sample, by its key."""
        return {row.key: row.rank for row in self.rows if row[:3] == (task, mode, ranking)}
