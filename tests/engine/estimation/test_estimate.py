"""An estimated step beside a measured one: bytes of torch's allocator, operations counted while it runs."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fixtures.tiny_virtue import tiny_virtue
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones import cpu_tiles
from virtue_pl.cli.run.estimate_rows import RowSizes, make_batch
from virtue_pl.engine import FullBatch, GradientCache
from virtue_pl.engine.estimation.devices import DEVICES, device_named, find_device
from virtue_pl.engine.estimation.estimate import Ranks, StepEstimate, estimate_step, largest_fitting, size_of
from virtue_pl.engine.estimation.row_flops import flops_per_token
from virtue_pl.engine.estimation.step_trace import ATTENTION, ATTENTION_BACKWARD, FORMULAS, KINDS, OPTIMIZER, tensors_in
from virtue_pl.types import VirtueError

ROWS = 8
SIZES = RowSizes(image=(56, 56), query_tokens=12, target_tokens=6)
SETTINGS = {
    "whole batch": (None, None),
    "gradient cache": (None, 2),
    "adapters on frozen networks": (LoRA(rank=4, alpha=8, dropout=0.0, dora=True), 2),
}


def model_of(setting: str) -> Any:
    adapter, chunk_size = SETTINGS[setting]
    model = tiny_virtue(adapter=adapter)
    model.log = lambda *_, **__: None
    model.gradient_cache = FullBatch() if chunk_size is None else GradientCache(chunk_size)
    return model


@cache
def estimate(setting: str, autocast: torch.dtype | None = None) -> StepEstimate:
    model = model_of(setting)
    batches = {rows: make_batch(model, SIZES, rows).to("meta") for rows in (1, 2, 3, 4, 6)}
    return estimate_step(model.to("meta"), batches.__getitem__, autocast)


def step(model: Any, batch: Any) -> None:
    model.training_step(batch, 0).backward()
    model.zero_grad()


def measured_bytes(model: Any, batch: Any) -> int:
    step(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step(model, batch)
    events, changes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
        events += event.children
    held = [0]
    for _, size in sorted(changes):
        held.append(held[-1] + size)
    return max(held) + size_of([*model.parameters(), *model.buffers()]) + size_of(tensors_in(batch))


def measured_flops(model: Any, batch: Any) -> int:
    own = {one: FORMULAS[one] for one in (ATTENTION, ATTENTION_BACKWARD)}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        step(model, batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_estimate_is_what_a_step_takes(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tiles, "uses_tiles", lambda device: False)
    model = model_of(setting)
    batch = make_batch(model, SIZES, ROWS)
    held, computed = measured_bytes(model, batch), measured_flops(model, batch)
    found, chunk_size = estimate(setting), SETTINGS[setting][1]
    memory = found.memory(ROWS, chunk_size)
    assert set(memory) == set(KINDS)
    assert sum(memory.values()) - memory[OPTIMIZER] == pytest.approx(held, rel=0.15)
    assert sum(found.flops(ROWS, chunk_size).values()) == pytest.approx(computed, rel=0.05)


@pytest.fixture(scope="module")
def adapted_estimate() -> StepEstimate:
    return estimate("adapters on frozen networks")


def test_only_a_cache_computes_again(adapted_estimate: StepEstimate) -> None:
    whole, chunked = adapted_estimate.flops(64, None), adapted_estimate.flops(64, 2)
    assert whole["recomputed"] == 0 and chunked["recomputed"] == chunked["forward"]
    assert adapted_estimate.model_flops(64, 2) == pytest.approx(adapted_estimate.model_flops(64, None), rel=0.15)


def test_the_largest_batch_and_chunk_fit_and_one_more_does_not(adapted_estimate: StepEstimate) -> None:
    limit = 2 * sum(adapted_estimate.memory(8, 2).values())
    batch = adapted_estimate.largest_batch(2, limit)
    assert batch is not None and batch > 8
    assert (
        sum(adapted_estimate.memory(batch, 2).values()) <= limit < sum(adapted_estimate.memory(batch + 1, 2).values())
    )
    limit = 2 * sum(adapted_estimate.memory(64, 1).values())
    chunk = adapted_estimate.largest_chunk(64, limit)
    assert chunk is not None and sum(adapted_estimate.memory(64, chunk).values()) <= limit
    assert adapted_estimate.largest_batch(2, 1) is None
    assert largest_fitting(lambda number: number <= 37, 100) == 37
    assert largest_fitting(lambda number: True, 100) == 100


def test_what_ranks_share(adapted_estimate: StepEstimate) -> None:
    alone, apart, sharded = (
        replace(adapted_estimate, ranks=ranks).memory_of_phases(64, 2)
        for ranks in (Ranks(), Ranks(8), Ranks(8, sharded=True))
    )
    trained = adapted_estimate.weights.trained
    assert apart["optimizer"]["gradients"] == 2 * trained == 2 * alone["optimizer"]["gradients"]  # DDP's buckets
    assert apart["loss"]["logits"] == 8 * alone["loss"]["logits"]
    assert sharded["optimizer"]["optimizer"] == 2 * trained // 8
    assert sharded["optimizer"]["weights"] <= adapted_estimate.weights.all


def test_mixed_precision_holds_less_between_the_passes() -> None:
    low, full = estimate("whole batch", torch.bfloat16), estimate("whole batch")
    assert low.memory(64, None)["activations"] < 0.8 * full.memory(64, None)["activations"]
    assert low.flops(64, None) == full.flops(64, None)


def test_a_tokens_operations_are_those_of_a_step_without_its_loss() -> None:
    model = model_of("adapters on frozen networks")
    batch = make_batch(model, SIZES, 2)
    before = [parameter.grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    own = flops_per_token(model, batch.queries, nullcontext()) * sum(batch.queries.layout.token_counts)
    own += flops_per_token(model, batch.targets, nullcontext()) * sum(batch.targets.layout.token_counts)
    assert [parameter.grad for parameter in model.parameters()] == before
    assert torch.equal(torch.get_rng_state(), state)
    model.gradient_cache = FullBatch()
    assert own == pytest.approx(measured_flops(model, batch), rel=0.05)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("cpu", None),
        ("NVIDIA A1000", None),
    ],
)
def test_devices_are_found_by_what_their_driver_calls_them(name: str, device: str | None) -> None:
    assert find_device(name) == (None if device is None else DEVICES[device])


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(VirtueError, match=r"--device is h10, expected one of b200, h200, h100"):
        device_named("h10")
