"""Which precisions a device computes in itself, and which it would only imitate, slower than float32."""

from __future__ import annotations

import torch

from virtue_pl.types import VirtueError


def check_precision(precision: str, device: torch.device) -> None:
    """Raises VirtueError where the trainer's `precision` is emulated on `device`."""
    wanted = "bfloat16" if precision.startswith("bf16") else "float16" if precision.startswith("16") else None
    if wanted is None or computes(device, wanted):
        return
    instead = "32-true" if wanted == "bfloat16" or device.type == "cpu" else "16-mixed"
    raise VirtueError(f"trainer.precision is {precision}, but this {device.type} has no {wanted} arithmetic and would imitate it, slowly: set {instead}")


def computes(device: torch.device, dtype: str) -> bool:
    if device.type == "cuda":
        return dtype == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return dtype == "bfloat16" and cpu_has_bfloat16()
    return True


def cpu_has_bfloat16() -> bool:
    """Matrix products by AMX, or dot products by AVX-512 BF16, or Arm's own."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "amx_tile", "avx512_bf16", "sve_bf16", "bf16"))
