"""The floating-point operations that a model in training takes for a token, counted on two rows."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from virtue_pl.engine.estimation.meta_autocast import ATTENTION, ATTENTION_BACKWARD
from virtue_pl.engine.estimation.step_trace import FORMULAS
from virtue_pl.types import EncoderBatch

COUNTED_ROWS = 2
"""Rows whose operations are counted."""


def counting() -> FlopCounterMode:
    """Return a mode that counts operations, those of attention on a CPU, too."""
    return FlopCounterMode(
        display=False, custom_mapping={one: FORMULAS[one] for one in (ATTENTION, ATTENTION_BACKWARD)}
    )


def flops_per_token(model: Any, inputs: EncoderBatch, precision: AbstractContextManager[Any]) -> float:
    """Return the operations of a token of a batch, forward and backward, nothing computed twice; frozen networks count.

    Tokens are those of texts and images (`RowLayout.token_counts`). The first rows are encoded; the parameters'
    gradients, their hooks and the random generators are left as they are. precision: the context of a forward pass.
    """
    few = inputs.select(range(min(COUNTED_ROWS, len(inputs))))
    device = few.input_ids.device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices, device_type="cuda"), counting() as counter:
        with torch.enable_grad(), precision:
            embeddings = model.encode(few)
        if embeddings.requires_grad:
            torch.autograd.grad(embeddings.float().sum(), trained, allow_unused=True)
    return float(counter.get_total_flops()) / max(1, sum(few.layout.token_counts))
