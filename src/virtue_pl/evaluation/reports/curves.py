"""Scalars that a training run logged, read from its TensorBoard events."""

from __future__ import annotations

from pathlib import Path

Curve = dict[int, float]
"""step -> value"""


def read_curve(folder: str | Path, tag: str) -> Curve:
    """Read a scalar of a run by step, from all its event files.

    The later value counts for a step that was logged twice, as happens where a run was resumed.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return {}
    found = sorted(events.Scalars(tag), key=lambda event: event.wall_time)
    return dict(sorted({event.step: event.value for event in found}.items()))
