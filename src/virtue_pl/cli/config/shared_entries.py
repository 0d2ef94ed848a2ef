"""Entries of `shared` that nobody reads: an account over all config files, and the error that names the closest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from virtue_pl.cli.errors import UsageError

REFERENCE = re.compile(r"\bshared\.(\w+)")
"""An entry of `shared` within an interpolation, also one inside of another or with a default (`oc.select`)."""


class SharedEntries:
    """Account of the entries of `shared` that the config files of a command read.

    An entry is read where a `${shared.NAME}` stands in any of the files, or in a part that one of them names, even if
    a later file replaces that part. A run's config.yaml reads none, since its values are filled in: what it states is
    stated for the record.

    Example:
        >>> entries = SharedEntries()
        >>> entries.add_file("data: {batch_size: '${shared.batch_size}'}", {"batch_size": 8})
        >>> entries.check({"batch_size": 8})
        >>> entries.check({"batchsize": 32})
        Traceback (most recent call last):
        virtue_pl.cli.errors.UsageError: shared.batchsize: nothing reads it; did you mean 'batch_size'?
    """

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.recorded: dict[str, Any] = {}

    def add_file(self, merged: str, shared: Mapping[str, Any]) -> None:
        """Add the references in the merged config after a file was laid over it. shared: the file's own entries."""
        if not self.add_references(merged) and re.search(r"\bmodel=|\bmodel:", merged):
            self.recorded |= shared

    def add_references(self, merged: str) -> bool:
        """Add the references in a config's text; returns whether it has any."""
        found = set(REFERENCE.findall(merged)) if "${" in merged else set()
        self.read |= found
        return bool(found)

    def check(self, shared: Mapping[str, Any]) -> None:
        """Raise UsageError for the first entry that nothing reads, with the closest name."""
        for name, value in shared.items():
            if name in self.read:
                continue
            if name in self.recorded:
                if value != self.recorded[name]:
                    raise UsageError(
                        f"shared.{name}: the config is that of a run, in which the values are filled in, so that"
                        " nothing reads it; set the options that had it, or take the"
                        " config that the run was started with"
                    )
                continue
            names = sorted(self.read | self.recorded.keys())
            closest = get_close_matches(name, names, 1)
            hint = f"; did you mean {closest[0]!r}?" if closest else f", expected one of {', '.join(names) or 'none'}"
            raise UsageError(f"shared.{name}: nothing reads it{hint}")
