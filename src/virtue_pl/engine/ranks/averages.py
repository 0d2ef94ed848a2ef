"""Averages over an evaluation's rows, the same however the rows are distributed over ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from virtue_pl.engine.ranks.collectives import all_reduce_sum, gather_objects


class RowAverages:
    """Sums over rows, by the average's name. A rank may have no rows at all.

    Example:
        >>> averages = RowAverages()
        >>> averages.add("val/loss", torch.tensor(2.0), 3)
        >>> averages.add("val/loss", torch.tensor(6.0), 1)
        >>> averages.compute(torch.device("cpu"))
        {'val/loss': tensor(3.)}
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def add(self, name: str, mean: Tensor, rows: int) -> None:
        """Add the mean over some rows. Nothing is read from the device."""
        total = mean.detach().double() * rows if mean.device.type != "mps" else mean.detach() * rows
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.rows[name] = self.rows.get(name, 0) + rows

    def compute(self, device: torch.device) -> dict[str, Tensor]:
        """Return the averages over the rows of all ranks, and begin anew. Every rank must call it."""
        names = gather_names(list(self.sums))
        zero = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        counts = torch.tensor([self.rows.get(name, 0) for name in names], dtype=zero.dtype, device=device)
        sums = [self.sums.get(name, zero) for name in names]
        self.sums, self.rows = {}, {}
        if not names:
            return {}
        totals, rows = all_reduce_sum(torch.stack([torch.stack(sums), counts]))
        return dict(zip(names, (totals / rows.clamp(min=1)).float(), strict=True))


def gather_names(names: list[str]) -> list[str]:
    """Return the names that any rank has, sorted."""
    return sorted({name for of_rank in gather_objects(names) for name in of_rank})
