"""One row of a parity table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParityRow:
    """One compared quantity of a case, with its largest difference.

    tolerance: the largest difference that is right; None for a quantity that is reported, and not judged.

    Example:
        >>> ParityRow("image_box", "embedding", difference=2e-6, cosine=1.0, tolerance=1e-4).holds
        True
    """

    case: str
    name: str
    difference: float
    cosine: float
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Return whether the difference is within its tolerance; one that is not a number is not."""
        return self.tolerance is None or self.difference <= self.tolerance
