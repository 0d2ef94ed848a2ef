"""The trainer of the commands: Lightning's, with what suits the device, who started it, and its signals."""

from __future__ import annotations

from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.strategies.launchers import subprocess_script

from virtue_pl.cli.run.children import watch_children
from virtue_pl.cli.run.launcher import find_launcher
from virtue_pl.engine.precision import choose_precision
from virtue_pl.engine.ranks.signals import follow_signals

OF_LAUNCHER = "launcher"
"""The devices that torchrun or SLURM has started a process for; one without them."""


class AutoPrecisionTrainer(Trainer):
    """Lightning's Trainer, whose `precision` may be "auto", and whose devices are by default the launcher's.

    Signals to any of its ranks stop all of them after the same step (`engine.ranks.signals`).

    Args:
        precision: a precision of Lightning's, or "auto": bfloat16 where the device multiplies in it, else float32.
        devices: of a node: their number or indices; "launcher" for those of torchrun or SLURM, one without them;
            "auto" for the same, and without them for all GPUs there are.
        num_nodes: the number of machines; null for those of torchrun or SLURM, one without them.

    Example:
        >>> AutoPrecisionTrainer(precision="auto", accelerator="cpu").precision  # doctest: +SKIP
        'bf16-mixed'
    """

    def __init__(
        self,
        *args: Any,
        precision: _PRECISION_INPUT | Literal["auto"] | None = None,
        devices: list[int] | str | int = "auto",
        num_nodes: int | None = None,
        **kwargs: Any,
    ) -> None:
        subprocess_script._launch_process_observer = watch_children
        launcher = find_launcher()
        if str(devices) in (OF_LAUNCHER, "auto") and (launcher is not None or devices == OF_LAUNCHER):
            devices = 1 if launcher is None else launcher.processes
        super().__init__(
            *args,
            precision=choose_precision(precision, kwargs.get("accelerator")),
            devices=devices,
            num_nodes=num_nodes or (1 if launcher is None else launcher.nodes),
            **kwargs,
        )
        if launcher is not None:
            launcher.check(self.num_devices, self.num_nodes)
        follow_signals(self)
