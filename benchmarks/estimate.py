"""Compare what `virtue-pl estimate` foretells of a training step of the mid-size model with what the step takes.

Three settings of benchmarks/bench_mid.yaml, batch 8 in float32: the whole batch with a language model that is trained
fully; the same in a gradient cache of chunks of 2; adapters (DoRA) on frozen networks in a gradient cache. Measured are
the bytes that torch's CPU allocator has given out at its peak, by torch's profiler, and the operations, by
`FlopCounterMode`, both in a process of its own. The step is computed as on a GPU, not in the tiles of a CPU
(`backbones/cpu_tiles.py`). Prints one JSON object: estimate, measurement and their ratio.

    python benchmarks/estimate.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mid_size import build, pair_batch, run_child, write_model
from torch.profiler import ProfilerActivity, profile
from train_step import count_flops

from virtue_pl.backbones import cpu_tiles
from virtue_pl.engine import FullBatch, GradientCache
from virtue_pl.engine.estimation.estimate import estimate_step, size_of
from virtue_pl.engine.estimation.step_trace import OPTIMIZER, tensors_in

TRAINED = ("--model.init_args.fusion.init_args.adapter", "null")
SETTINGS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "whole batch": (TRAINED, None),
    "gradient cache": (TRAINED, 2),
    "frozen networks, adapters, gradient cache": ((), 2),
}
"""Options of the config, and rows of a chunk."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--setting", choices=tuple(SETTINGS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting is not None:
        print(json.dumps(compare(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(write_model(Path(temporary) / "qwen2_vl"))
        size = ("--batch-size", str(options.batch_size))
        found = {name: run_child(__file__, "--folder", folder, "--setting", name, *size) for name in SETTINGS}
    print(json.dumps({"batch_size": options.batch_size, "settings": found}, indent=2))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    overrides, chunk_size = SETTINGS[options.setting]
    model: Any = build(Path(options.folder), "float32", *overrides).train()
    model.gradient_cache = FullBatch() if chunk_size is None else GradientCache(chunk_size)
    batch = pair_batch(model, options.batch_size)
    with patch.object(cpu_tiles, "uses_tiles", lambda device: False):
        measured = {"bytes": measure_bytes(model, batch), "flops": count_flops(model, batch)}
    model.to("meta")
    began = time.perf_counter()
    step = estimate_step(model, lambda rows: pair_batch(model, rows).to("meta"))
    seconds = time.perf_counter() - began
    memory = step.memory(options.batch_size, chunk_size)
    estimated = {
        "bytes": sum(memory.values()) - memory[OPTIMIZER],  # the measured step is none of the optimizer
        "flops": sum(step.flops(options.batch_size, chunk_size).values()),
    }
    ratio = {name: round(estimated[name] / measured[name], 3) for name in measured}
    return {
        "estimated": estimated,
        "measured": measured,
        "ratio": ratio,
        "memory": memory,
        "seconds": round(seconds, 1),
    }


def measure_bytes(model: Any, batch: Any) -> int:
    """Return the bytes of weights and batch, and the most that a step's tensors hold beside them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model.training_step(batch, 0).backward()
    model.zero_grad()
    changes: list[tuple[int, int]] = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
        events += event.children
    live = peak = 0
    for _, size in sorted(changes):
        live += size
        peak = max(peak, live)
    return peak + size_of([*model.parameters(), *model.buffers()]) + size_of(tensors_in(batch))


if __name__ == "__main__":
    main()
