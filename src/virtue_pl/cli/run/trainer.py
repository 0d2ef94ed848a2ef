"""The trainer of the commands: Lightning's, with a precision that suits the device."""

from __future__ import annotations

from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT

from virtue_pl.engine.precision import choose_precision


class AutoPrecisionTrainer(Trainer):
    """Lightning's Trainer, whose `precision` may be "auto".

    Args:
        precision: a precision of Lightning's, or "auto": bfloat16 where the device multiplies in it, else float32.

    Example:
        >>> AutoPrecisionTrainer(precision="auto", accelerator="cpu").precision  # doctest: +SKIP
        'bf16-mixed'
    """

    def __init__(self, *args: Any, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, precision=choose_precision(precision, kwargs.get("accelerator")), **kwargs)
