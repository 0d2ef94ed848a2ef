"""Measuring the memory that is free, and the memory that activations take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int:
    """Return the number of bytes that a new tensor on `device` may take.

    On a CPU it is what the system and its control group have left; 8 GiB where neither says it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([*system_memory(), *group_memory()], default=8 * 2**30)


def system_memory() -> list[int]:
    """Return the memory that the system has left, in bytes; an empty list where it does not say it."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.is_file() else []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def group_memory() -> list[int]:
    """Return the memory that the control group (v2) has left, in bytes; an empty list where it has no limit."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return []
    return [max(0, int(limit.read_text()) - int(used.read_text()))]


def graph_bytes(compute: Callable[[], Any]) -> int:
    """Return the bytes of all tensors that autograd stores for the backward pass of `compute`, weights among them."""
    stored: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        result = compute()
    del result
    return sum(stored.values())
