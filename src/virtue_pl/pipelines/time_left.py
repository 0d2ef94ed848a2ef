"""Time that the rest of several stages takes, from what stages have taken on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ENOUGH = 0.02
"""Share of all the work that must have been timed in this call before other durations are scaled by it."""


class TimeLeft:
    """An estimate of the seconds that stages take which are not done.

    A stage's seconds are, in this order: those that it took here in an earlier call, or its typical ones, both times
    how much slower the stages of this call were; or the mean of the stages of its kind ("fit", "test") that were timed
    here. Where one stage has none of these there is no estimate, so there is none at the very start.

    Args:
        earlier: seconds that stages took here before this call, by name.
        typical: seconds that they take on some machine, which only have to be right among each other.

    Example:
        >>> left = TimeLeft(earlier={}, typical={"scenes": 10, "fit": 40})
        >>> left.seconds(["fit"]) is None
        True
        >>> left.add("scenes", 20.0)
        >>> left.seconds(["fit"])
        80.0
    """

    def __init__(self, earlier: Mapping[str, float] | None = None, typical: Mapping[str, float] | None = None) -> None:
        self.earlier = dict(earlier or {})
        self.typical = dict(typical or {})
        self.timed: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add what a stage took on this machine."""
        self.timed[name] = seconds

    def seconds(self, names: Sequence[str]) -> float | None:
        """Return the seconds that the named stages take together; None where one of them has no estimate."""
        each = [self.stage_seconds(name) for name in names]
        return sum(found for found in each if found is not None) if None not in each else None

    def stage_seconds(self, name: str) -> float | None:
        """Return the seconds that one stage takes; None where nothing says so."""
        for earlier in (self.earlier, self.typical):
            compared = [timed for timed in self.timed if timed in earlier]
            measured = sum(earlier[timed] for timed in compared)
            if name in earlier and compared and measured >= ENOUGH * sum(earlier.values()) and measured > 0:
                return earlier[name] * sum(self.timed[timed] for timed in compared) / measured
        kind = name.partition(" ")[0]
        alike = [seconds for timed, seconds in self.timed.items() if timed.partition(" ")[0] == kind]
        return sum(alike) / len(alike) if alike else None


def describe_seconds(seconds: float) -> str:
    """Return a duration in words, such as "about 12 minutes"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {round(minutes / 60, 1):g} hours"
