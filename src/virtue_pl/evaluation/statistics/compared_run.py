"""A run in one evaluation mode: a row of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from virtue_pl.evaluation.statistics.common_queries import Training
from virtue_pl.evaluation.statistics.summary import NO_MODELS, SET_BLIND
from virtue_pl.metrics.ranking import RankRows
from virtue_pl.types import VirtueError

LeftOut = Mapping[str, Mapping[str, int]]
"""Number of queries that were not ranked, by task and reason."""


@dataclass(frozen=True)
class ComparedRun:
    """A run in one evaluation mode: a row of the comparison.

    trainings: the ranks of each of its seeds; two runs that share this object are the same trainings in two modes.
    reference: name of the run whose share is subtracted; its own name for no comparison.
    use_only_mode: count a task that was ranked in one other mode alone in that mode, such as queries without a region.
    fingerprints: of the data that its reports say it was tested on, if they do. left_out: what it did not rank.

    Example:
        >>> virtue = ComparedRun("virtue", read_run("runs/virtue"), mode="box", reference="virtue")  # doctest: +SKIP
        >>> crop = ComparedRun("crop", read_run("runs/crop"), mode="box", reference="virtue")
    """

    name: str
    trainings: tuple[RankRows, ...]
    mode: str
    reference: str
    use_only_mode: bool = False
    fingerprints: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        """False for a baseline that looks at no image (`NO_MODELS`), which no table marks as the best."""
        return self.mode not in NO_MODELS

    def rows(self) -> dict[tuple[str, str], list[Training]]:
        """Return (task, ranking) -> for each training, its ranks by the query's key.

        Raises VirtueError if nothing was ranked in the mode.
        """
        found: dict[tuple[str, str], list[Training]] = {}
        modes = set()
        for training in self.trainings:
            groups = training.groups()
            chosen = self.modes(groups)
            for (task, mode, ranking), rows in groups.items():
                modes.add(mode)
                if mode == chosen.get(task):
                    found.setdefault((task, ranking), []).append({row.key: row for row in rows})
        if not found:
            raise VirtueError(
                f"{self.name}: nothing was ranked in mode {self.mode!r}, expected one of {', '.join(sorted(modes))}"
            )
        return found

    def modes(self, groups: Iterable[tuple[str, str, str]]) -> dict[str, str]:
        """Return the mode in which each task counts. groups: (task, mode, ranking)."""
        ranked: dict[str, set[str]] = {}
        for task, mode, _ in groups:
            ranked.setdefault(task, set()).add(mode)
        alone = {
            task: next(iter(modes - {SET_BLIND}))
            for task, modes in ranked.items()
            if self.use_only_mode and len(modes - {SET_BLIND}) == 1
        }
        return alone | {task: self.mode for task, modes in ranked.items() if self.mode in modes}
