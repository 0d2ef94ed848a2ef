"""GPUs: their memory and the most operations a second that they do in dense matrix products."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from virtue_pl.types import VirtueError


class Device(NamedTuple):
    """A kind of GPU.

    memory: in bytes, whole GiB of what a driver offers, which is less than the number on the box. bfloat16, float32:
    peak operations a second, dense. source: where they are from.

    Where a GPU multiplies bfloat16 with sums in float32 at half its speed, that is the number. float32 is without
    TensorFloat-32.

    Example:
        >>> DEVICES["h100"].memory // 2**30
        79
    """

    memory: int
    bfloat16: float
    float32: float
    pattern: str
    source: str

    def peak(self, dtype: torch.dtype) -> float:
        """Return the peak in a type: that of bfloat16 for 16 bits, else float32's."""
        return self.bfloat16 if dtype in (torch.bfloat16, torch.float16) else self.float32


GIB = 2**30
DEVICES = {
    "b200": Device(178 * GIB, 2250e12, 75e12, r"B200", "NVIDIA HGX B200, data sheet (half of the sparse numbers)"),
    "h200": Device(139 * GIB, 989e12, 67e12, r"H200", "NVIDIA H200, data sheet (half of the sparse number)"),
    "h100": Device(79 * GIB, 989e12, 67e12, r"H100(?!.*(PCIe|NVL))", "NVIDIA H100 SXM, data sheet (half of sparse)"),
    "h100-pcie": Device(79 * GIB, 756e12, 51e12, r"H100.*PCIe", "NVIDIA H100 PCIe, data sheet (half of sparse)"),
    "a100": Device(79 * GIB, 312e12, 19.5e12, r"A100.*80GB", "NVIDIA A100 80GB, data sheet"),
    "a100-40": Device(39 * GIB, 312e12, 19.5e12, r"A100\b(?!.*80GB)", "NVIDIA A100 40GB, data sheet"),
    "l40s": Device(45 * GIB, 362e12, 91.6e12, r"L40S", "NVIDIA L40S, data sheet (half of sparse)"),
    "l4": Device(22 * GIB, 121e12, 30.3e12, r"L4\b", "NVIDIA L4, data sheet (half of sparse)"),
    "a10": Device(22 * GIB, 125e12, 31.2e12, r"A10\b", "NVIDIA A10, data sheet"),
    "rtx4090": Device(24 * GIB, 165.2e12, 82.6e12, r"RTX 4090\b", "NVIDIA Ada architecture white paper, appendix A"),
    "rtx3090": Device(24 * GIB, 71e12, 35.6e12, r"RTX 3090\b", "NVIDIA GA102 white paper, appendix"),
}
"""GPUs by the names that `virtue-pl estimate --device` takes."""


def device_named(name: str) -> Device:
    """Return the GPU of a name. Raises VirtueError for one that is not in the table."""
    if name.lower() not in DEVICES:
        raise VirtueError(f"--device is {name}, expected one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]


def find_device(name: str) -> Device | None:
    """Return the GPU that a driver calls `name`, such as "NVIDIA H100 80GB HBM3"; None for one not in the table."""
    return next((device for device in DEVICES.values() if re.search(device.pattern, name)), None)
