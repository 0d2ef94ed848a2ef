"""Lines of other libraries that a command does not print: those that no user of this program can act on."""

from __future__ import annotations

import logging
import os
import warnings

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # its report of a checkpoint's unused head; weights are checked by the loaders
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar for tensors that are read in a blink
    "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning still calls names that jsonargparse 5 will drop
}
"""Settings that libraries read when they are imported; what a user has set stays."""
LINES = (
    *("litlogger", "litmodels", "TPU available", "already configured with model summary"),
    "to estimate number of stepping batches",
    "`weights_only` was not set",  # said where a checkpoint is written; all are read with it, see `cli.lightning`
)
"""Parts of Lightning's lines on services nobody asked for, on devices that nothing here runs on, on its own work."""
WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own call into torch
    r"Found \d+ module\(s\) in eval mode at the start of training",  # frozen parts, which are meant to be
    r"Precision .* is not supported by the model summary",  # its estimate of the megabytes alone
    r"Checkpoint directory .* exists and is not empty",  # of a run that goes on; any other one is refused
    r"The dirpath has changed from",  # of a run that is tested into a folder of its own
)
"""Patterns of the beginnings of warnings that are silenced."""


def quieten_libraries() -> None:
    """Silence these lines; called before the libraries are imported, of which it imports none."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(is_wanted)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)


def is_wanted(record: logging.LogRecord) -> bool:
    """Return whether a line of Lightning's is printed."""
    return not any(part in record.getMessage() for part in LINES)
