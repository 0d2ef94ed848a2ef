"""Metrics that collect ranks over batches and processes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, final

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from virtue_pl.metrics.ranking import RankRow, RankRows, SampleRanks
from virtue_pl.types import VirtueError


@final
class RankTable(Metric):
    """A table of ranks over batches and processes, the same however the samples were distributed.

    Rows are int64 (task, mode, ranking, key, rank, candidates), the first four as hashes of names, which are gathered
    beside them. A process may have no rows. `compute` is a collective: every process must call it.

    Example:
        >>> table = RankTable()
        >>> table.update("box", SampleRanks(("scar",), ("hit@1",), ("scar/0",), (10,), torch.tensor([3])))
        >>> table.compute().ranks("scar", "box", "hit@1")
        {'scar/0': 3}
    """

    full_state_update = False
    rows: list[Int[Tensor, "entries 6"]]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dist_sync_fn=self._gather, **kwargs)
        self.names: dict[int, str] = {}
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Forget all rows. A process may have none: that is no reason to warn in `compute`."""
        super().reset()
        self._update_count = 1

    def update(self, mode: str, ranked: SampleRanks) -> None:
        """Add the ranks that `sample_ranks` or `set_blind_ranks` returned, in the given mode."""
        hashes = {name: self._hash(name) for name in {mode, *ranked.tasks, *ranked.rankings, *ranked.keys}}
        columns = [
            [hashes[task] for task in ranked.tasks],
            [hashes[mode]] * len(ranked.tasks),
            [hashes[ranking] for ranking in ranked.rankings],
            [hashes[key] for key in ranked.keys],
            ranked.ranks.tolist(),
            ranked.candidates,
        ]
        self.rows.append(torch.tensor(columns, dtype=torch.long, device=self.device).T.contiguous())

    def compute(self) -> RankRows:
        """Return the rows of all processes, sorted."""
        rows: list[list[int]] = dim_zero_cat(self.rows).tolist() if len(self.rows) else []
        return RankRows(
            RankRow(self.names[task], self.names[mode], self.names[ranking], self.names[key], rank, candidates)
            for task, mode, ranking, key, rank, candidates in rows
        )

    def _hash(self, name: str) -> int:
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
        if self.names.setdefault(number, name) != name:
            raise VirtueError(f"the names {name!r} and {self.names[number]!r} have the same hash: rename one of them")
        return number

    def _gather(self, rows: Tensor, group: Any = None) -> list[Int[Tensor, "entries 6"]]:
        # torchmetrics gives a float tensor of no dimension for a process without rows.
        encoded = torch.frombuffer(bytearray(json.dumps(list(self.names.values())).encode()), dtype=torch.uint8).to(
            rows.device
        )
        names: list[UInt8[Tensor, " bytes"]] = gather_all_tensors(encoded, group)
        for part in names:
            for name in json.loads(bytes(part.tolist())):
                self._hash(name)
        return gather_all_tensors(rows.long().reshape(-1, 6), group)


@final
class HitRate(Metric):
    """The share of queries whose right candidate is among the first `k`; 0 before any query.

    Example:
        >>> rate = HitRate(k=1)
        >>> rate.update(torch.tensor([0, 2, 0, 1]))
        >>> rate.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    full_state_update = False
    hits: Int[Tensor, ""]
    total: Int[Tensor, ""]

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        self.add_state("hits", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, ranks: Int[Tensor, " queries"]) -> None:
        """Add the ranks of queries' right candidates, counted from 0."""
        self.hits += (ranks < self.k).sum()
        self.total += len(ranks)

    def compute(self) -> Float[Tensor, ""]:
        """Return the share over all ranks."""
        return self.hits / self.total.clamp(min=1)
