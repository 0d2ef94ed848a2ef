"""Settings of an evaluation's data, declared once.

The DataModule takes them; YAML and the options of `virtue-pl eval` follow.

Nothing here imports torch, so that `--help` needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EvaluationDataOptions:
    """Options of the rows of evaluation sets, and of reading them.

    Example:
        >>> EvaluationDataOptions(limit=100).batch_size
        16
    """

    form: Literal["instruct", "v1"] | None = None
    """of MMEB's files, where both are there: instruct, with instructions in columns of their own; v1, one string"""
    candidates: Literal["own", "all"] = "own"
    """what a query ranks: own, the candidates of its row; all, the right answers of all rows of its set, each once, as
    in a search among them; rows then need no candidates but a target
    """
    resize_to_square: int | None = None
    """every image becomes a square of so many pixels a side first (1344 in the published evaluation); default: its own
    size
    """
    limit: int | None = None
    """of each set only the first rows"""
    allow_missing: bool = False
    """sets whose files are missing, and queries that cannot be ranked (a missing image, an impossible box), are left
    out, and the tables say so; or else they stop the run
    """
    images: tuple[str, ...] = ()
    """folders to look for images in, before those of the layout"""
    batch_size: int = 16
    """inputs read at once"""
    num_workers: int = 0
    """processes that read images; 0: none beside the main one"""
