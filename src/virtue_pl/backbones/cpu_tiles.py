"""The one question by which a network is cut in tiles, or computes all at once: what device it runs on."""

from __future__ import annotations

import torch


def uses_tiles(device: torch.device) -> bool:
    """Return whether work on a device is cut in tiles that fit a core's cache: a CPU's alone.

    Any other device pays for each kernel that it starts, and is given everything at once.
    """
    return device.type == "cpu"
