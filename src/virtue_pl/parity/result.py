"""One line of a parity table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParityRow:
    """What was compared in a case, and how far it is. tolerance: the all_reduce_max difference that is right; None for
    what is only shown.
    """

    case: str
    name: str
    difference: float
    cosine: float
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Not a number is not right."""
        return self.tolerance is None or self.difference <= self.tolerance
