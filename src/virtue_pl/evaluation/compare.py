"""Is one mode or run better than another? A paired bootstrap over the samples that both have ranked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from virtue_pl.types import VirtueError


class Difference(NamedTuple):
    """The first's hit rate minus the second's over `n` shared samples, and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def paired_bootstrap(
    first: Mapping[str, int], second: Mapping[str, int], k: int = 1, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """How much more often `first` has the right candidate among its first `k` than `second`.

    first, second: rank by sample key (`RankRows.ranks`); keys that only one has are left out.
    A pair differs by -1, 0 or 1, so drawing n pairs with replacement is one draw from a multinomial over these three.
    Raises VirtueError if no key is shared.
    """
    keys = sorted(first.keys() & second.keys())
    if not keys:
        raise VirtueError(f"nothing to compare: {len(first)} and {len(second)} ranked samples share no key; test both on the same data")
    differences = np.array([int(first[key] < k) - int(second[key] < k) for key in keys])
    shares = [(differences == value).mean() for value in (-1, 0, 1)]
    drawn = np.random.default_rng(seed).multinomial(len(keys), shares, size=resamples)
    means = (drawn[:, 2] - drawn[:, 0]) / len(keys)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high), len(keys))
