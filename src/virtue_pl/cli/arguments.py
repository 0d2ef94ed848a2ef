"""Types of arguments that several commands share."""

from __future__ import annotations

import argparse


def positive_number(text: str) -> int:
    """Return a whole number of at least 1. Raises ArgumentTypeError for any other text."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)
