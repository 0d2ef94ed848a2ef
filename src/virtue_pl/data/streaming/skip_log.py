"""The samples that a stream passed over, and the limits at which it stops."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.types import DataError, VirtueError


class SkipLog:
    """The samples that were skipped, by key, and the limits at which the run stops.

    A bad sample that comes again (in the next epoch) counts once.

    Args:
        limits: as many bad samples are passed over; one more stops the run.

    Example:
        >>> log = SkipLog(BadSampleLimits(max_bad_samples=1))
        >>> log.skip(DataError("set/7", "damaged image"))
        >>> skip_summary(log.problems)
        '1 bad samples (set/7: damaged image)'
    """

    def __init__(self, limits: BadSampleLimits) -> None:
        self.limits = limits
        self.problems: dict[str, str] = {}
        self.consecutive = 0
        self._new: list[tuple[str, str]] = []

    def skip(self, error: DataError) -> None:
        """Count `error`. Raises VirtueError, naming the first bad samples, where a limit is passed."""
        most, most_in_a_row = self.limits.max_bad_samples, self.limits.max_consecutive_bad
        self.consecutive += 1
        if error.key not in self.problems:
            self.problems[error.key] = error.problem
            self._new.append((error.key, error.problem))
        if len(self.problems) > most:
            raise VirtueError(f"{skip_summary(self.problems)}: more than max_bad_samples = {most}")
        if self.consecutive > most_in_a_row:
            found = f"{skip_summary(self.problems)}: {self.consecutive} in a row"
            raise VirtueError(f"{found}, more than max_consecutive_bad = {most_in_a_row}")

    def reset_consecutive(self) -> None:
        """Note a good sample: bad ones are counted in a row from 0 again."""
        self.consecutive = 0

    def drain(self) -> tuple[tuple[str, str], ...]:
        """Return keys and problems since the last call."""
        new, self._new = tuple(self._new), []
        return new


def skip_summary(problems: Mapping[str, str], named: int = 5) -> str:
    """Return one line: how many samples were bad, and the first of them with their problems."""
    if not problems:
        return "no bad samples"
    first = "; ".join(f"{key}: {problem}" for key, problem in islice(problems.items(), named))
    more = f"; and {len(problems) - named} more" if len(problems) > named else ""
    return f"{len(problems)} bad samples ({first}{more})"
