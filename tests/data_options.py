"""Options of a data module as tests write them, side by side, in the groups that its constructor takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions

DATASET: dict[str, Any] = {"sampling": SamplingOptions, "reader": ReaderOptions}
"""The groups of a `ShardDataModule`."""


def grouped(options: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with those of each group in one object of its class; the others stay as they are."""
    names = {group: {field.name for field in fields(kind)} for group, kind in groups.items()}
    taken = set().union(*names.values())
    own = {
        group: kind(**{name: options[name] for name in names[group] & options.keys()}) for group, kind in groups.items()
    }
    return {**{name: value for name, value in options.items() if name not in taken}, **own}
