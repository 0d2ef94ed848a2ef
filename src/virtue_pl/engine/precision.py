"""Precisions that a device computes natively; it emulates the others, slower than float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from virtue_pl.types import VirtueError

AUTO = "auto"
"""The precision that suits the device."""


def choose_precision(wanted: Any, accelerator: Any = AUTO) -> Any:
    """Return `wanted`, a precision of Lightning's, or for "auto" the one that suits the device.

    That is bfloat16 ("bf16-mixed") where the device multiplies in it (a GPU, or a processor with AVX512-BF16 or AMX),
    else float32 ("32-true").

    Args:
        wanted: a precision of Lightning's, "auto", or None for Lightning's default.
        accelerator: Lightning's name of the device; "cpu" does not ask a GPU that is there.

    Example:
        >>> choose_precision("16-mixed")
        '16-mixed'
    """
    if wanted != AUTO:
        return wanted
    device = torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")
    return "bf16-mixed" if has_native_dtype(device, "bfloat16") else "32-true"


def check_precision(precision: str, device: torch.device) -> None:
    """Raise VirtueError where the trainer's `precision` is emulated on `device`, or finer than what is prepared."""
    if precision.startswith("64"):
        raise VirtueError(
            f"trainer.precision is {precision}, but images and prompts are prepared in 32 bits, which layers of 64 do"
            " not take: set 32-true"
        )
    wanted = "bfloat16" if precision.startswith("bf16") else "float16" if precision.startswith("16") else None
    if wanted is None or has_native_dtype(device, wanted):
        return
    instead = "16-mixed" if device.type == "cuda" else "32-true"
    raise VirtueError(
        f"trainer.precision is {precision}, but this {device.type} has no {wanted} arithmetic and would imitate it,"
        f" slowly: set {instead}"
    )


def precision_settings(precision: str) -> list[str]:
    """Return what rounds a computation's numbers beside the weights' types: the precision, and torch's for products.

    precision: of the trainer, or of an autocast context.
    """
    return [precision, torch.get_float32_matmul_precision()]


def has_native_dtype(device: torch.device, dtype: str) -> bool:
    """Return whether a device computes in `dtype`, "float16" or "bfloat16", natively."""
    if device.type == "cuda":
        return dtype == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return dtype == "bfloat16" and has_bfloat16(torch.cpu.get_capabilities())
    return True


def has_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Return whether a processor multiplies in bfloat16, by AMX, AVX-512 BF16 or Arm's own instructions.

    capabilities: of the processor, as `torch.cpu.get_capabilities` names them.
    """
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
