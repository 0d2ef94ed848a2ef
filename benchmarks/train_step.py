"""Cost of a training step of the mid-size model, compared to the published code and to the arithmetic that it needs.

Batch 8, chunk 2, 336x336 images with a box, DoRA r 8, one thread. The baseline (`published.py`) and ours take turns,
each in a process of its own, with the same weights. Prints one JSON object. Ratios are of CPU seconds, which other work
on the machine changes less than seconds: `ratio_to_baseline` to the baseline in float32, `ratio_to_floor` to the
floating-point operations of a step without a gradient cache at the speed of the machine's matrix product in that
precision.

Before that each takes one step without dropout, whose random draws would differ: `agreement` is the difference of the
losses and the gradients, and nothing is measured where float32's are not the baseline's.

`bookkeeping` is what a step of 1,024 rows at chunk 2 costs beside its networks, which are left out: `share` is of a
step whose networks take per row what they take here.

    python benchmarks/train_step.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from agreement import check, compare_gradients, save_gradients
from bookkeeping import measure_bookkeeping, share
from mid_size import Stages, build, child_parser, gemm_peak, pair_batch, peak_memory, run_child, timed, write_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from virtue_pl.cli.memory import keep_freed_memory
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.child:
        kinds = {"count": count, "bookkeeping": bookkeeping}
        print(json.dumps(kinds.get(options.child, agree if options.agree else measure)(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = str(write_model(Path(temporary) / "qwen2_vl"))
        print(json.dumps(compare(options), indent=2))


def parse() -> argparse.Namespace:
    parser = child_parser(__doc__)
    parser.add_argument("--steps", type=int, default=1, help="measured steps of a process, after one that is not")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--chunk-size", default="2", help="rows, auto, or plain")
    parser.add_argument("--rows", type=int, default=1024, help="rows of the step whose bookkeeping is measured")
    parser.add_argument("--no-baseline", action="store_true", help="measure ours alone")
    parser.add_argument("--child", choices=("ours", "baseline", "count", "bookkeeping"), help=argparse.SUPPRESS)
    parser.add_argument("--agree", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    agreement = {} if options.no_baseline else compare_numbers(options)
    arithmetic = child(options, "count", "float32")
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        if not options.no_baseline:
            runs.setdefault("baseline", []).append(child(options, "baseline", "float32"))
        for precision in options.precisions:
            runs.setdefault(precision, []).append(child(options, "ours", precision))
    report: dict[str, Any] = {
        "threads": options.threads,
        "batch_size": options.batch_size,
        "chunk_size": options.chunk_size,
        "rounds": options.rounds,
        **arithmetic,
    }
    report |= {name: middle(found) for name, found in runs.items()}
    cpu = {name: [run["cpu_seconds"] for run in found] for name, found in runs.items()}
    ours = options.precisions
    report["ratio_to_floor"] = {
        name: median([value * arithmetic["gemm_gflops"][name] / arithmetic["gflop"] for value in cpu[name]])
        for name in ours
    }
    beside = child(options, "bookkeeping", "float32")
    shares = {name: share(beside["cpu_seconds"], cpu[name], options.batch_size, options.rows) for name in ours}
    report["bookkeeping"] = {**beside, "share": shares}
    if "baseline" in runs:
        report["ratio_to_baseline"] = {
            name: median([a / b for a, b in zip(cpu[name], cpu["baseline"], strict=True)]) for name in ours
        }
        peak = report["baseline"]["peak_bytes"]
        report["memory_to_baseline"] = {name: round(report[name]["peak_bytes"] / peak, 3) for name in ours}
        report["agreement"] = agreement
    return report


def compare_numbers(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Compare loss and gradients to the baseline's, by precision. Ends the benchmark where float32's differ."""
    theirs, found = child(options, "baseline", "float32", "--agree"), {}
    for precision in dict.fromkeys(("float32", *options.precisions)):
        ours = child(options, "ours", precision, "--agree")
        found[precision] = compare_gradients(
            (ours["loss"], theirs["loss"]),
            (gradients(options, "ours", precision), gradients(options, "baseline", "float32")),
        )
        if precision == "float32":
            check(found[precision])
    return found


def gradients(options: argparse.Namespace, kind: str, precision: str) -> Path:
    return Path(options.folder).parent / f"{kind}_{precision}.safetensors"


def child(options: argparse.Namespace, kind: str, precision: str, *more: str) -> dict[str, Any]:
    same = {name: getattr(options, name) for name in ("steps", "threads", "batch_size", "chunk_size", "rows", "folder")}
    arguments = [part for name, value in same.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return run_child(__file__, *arguments, "--child", kind, "--precision", precision, *more)


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of median CPU seconds, with the largest peak of memory."""
    chosen = sorted(runs, key=lambda run: run["cpu_seconds"])[len(runs) // 2]
    return {
        **chosen,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "all_cpu_seconds": [run["cpu_seconds"] for run in runs],
    }


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def agree(options: argparse.Namespace) -> dict[str, Any]:
    """Run a step without dropout in this process, and save its gradients."""
    model, step = build_step(options, Stages())
    model.eval()
    loss = step()
    save_gradients(model, gradients(options, options.child, options.precision))
    return {"loss": loss}


def build_step(options: argparse.Namespace, stages: Stages) -> tuple[torch.nn.Module, Callable[[], float]]:
    """Return a model in training and a function that runs a step, without the optimizer's, and returns the loss."""
    return (baseline_step if options.child == "baseline" else our_step)(Path(options.folder), options, stages)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run a step that warms up in this process, then `steps` measured ones."""
    stages = Stages()
    model, step = build_step(options, stages)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    torch.manual_seed(3)
    step()
    optimizer.zero_grad()
    stages.spent.clear()

    def work() -> None:
        with stages.stage("backward and the rest"):
            for _ in range(options.steps):
                step()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()

    wall, cpu = timed(work)
    return {
        "seconds": round(wall / options.steps, 3),
        "cpu_seconds": round(cpu / options.steps, 3),
        "peak_bytes": peak_memory(),
        "stages": stages.report(options.steps),
    }


def bookkeeping(options: argparse.Namespace) -> dict[str, Any]:
    """Measure in this process what a step of `--rows` costs beside its networks, in chunks of two rows."""
    model: Any = build(Path(options.folder), "float32").train()
    return {
        "rows": options.rows,
        "chunk_size": 2,
        "cpu_seconds": round(measure_bookkeeping(model, options.rows, 2), 4),
    }


def our_step(folder: Path, options: argparse.Namespace, stages: Stages) -> tuple[torch.nn.Module, Callable[[], float]]:
    keep_freed_memory()
    model: Any = build(folder, options.precision).train()
    model.gradient_cache = strategy(options.chunk_size)
    batch = pair_batch(model, options.batch_size)
    backbone, vlm = model.segmentation.backbone, model.fusion.backbone
    stages.wrap(backbone, "image_features", "segmentation: pictures")
    stages.wrap(backbone, "forward", "segmentation: prompts")
    stages.wrap(vlm, "vision_features", "vision tower")
    stages.wrap(vlm.model.language_model, "forward", "language model")
    stages.wrap(model.connector, "forward", "connector")
    stages.wrap(model.loss, "forward", "loss")
    precision = torch.autocast("cpu", torch.bfloat16) if options.precision == "bfloat16" else nullcontext()

    def step() -> float:
        with precision:
            loss = model.training_step(batch, 0)
        loss.backward()
        return float(loss.detach())

    return model, step


def strategy(chunk_size: str) -> FullBatch | GradientCache:
    return (
        FullBatch() if chunk_size == "plain" else GradientCache(chunk_size if chunk_size == "auto" else int(chunk_size))
    )


def baseline_step(
    folder: Path, options: argparse.Namespace, stages: Stages
) -> tuple[torch.nn.Module, Callable[[], float]]:
    from published import Published, load_stock_vlm

    source = build(folder, "float32")
    batch = pair_batch(source, options.batch_size)
    model: Any = Published(source, load_stock_vlm(folder)).train()
    model.sam.eval()
    model.vlm.model.visual.eval()
    del source
    stages.wrap(model.sam.vision_encoder, "forward", "segmentation: pictures")
    stages.wrap(model.sam.mask_decoder.transformer, "forward", "segmentation: prompts")
    stages.wrap(model.vlm.model.visual, "forward", "vision tower")
    stages.wrap(model.vlm.model.language_model, "forward", "language model")
    stages.wrap(model.vlm.lm_head, "forward", "vocabulary")
    stages.wrap(model.loss, "forward", "loss")
    return model, lambda: float(model.step(batch, int(options.chunk_size)))


def count(options: argparse.Namespace) -> dict[str, Any]:
    """Count the floating-point operations of a step that computes everything once, and measure the machine's speed."""
    peaks = {precision: round(gemm_peak(precision), 1) for precision in options.precisions}
    model: Any = build(Path(options.folder), "float32").train()
    model.gradient_cache = FullBatch()
    batch = pair_batch(model, options.batch_size)
    return {"gemm_gflops": peaks, "gflop": round(count_flops(model, batch) / 1e9, 1)}


def count_flops(model: Any, batch: Any) -> int:
    """Return the floating-point operations of a training step, forward and backward."""
    attention: Any = torch.ops.aten
    own = {
        attention._scaled_dot_product_flash_attention_for_cpu: forward_flops,
        attention._scaled_dot_product_flash_attention_for_cpu_backward: backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        model.training_step(batch, 0).backward()
    model.zero_grad()
    return int(counter.get_total_flops())


def forward_flops(
    query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, *_: Any, **__: Any
) -> float:
    """Return the operations of attention: half of all pairs of tokens if it is causal."""
    return float(sdpa_flop_count(query, key, value)) / (2 if causal else 1)


def backward_flops(
    gradient: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    sums: Any,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> float:
    return float(sdpa_backward_flop_count(gradient, query, key, value)) / (2 if causal else 1)


if __name__ == "__main__":
    main()
