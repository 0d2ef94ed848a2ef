"""What the benchmarks of speed share: the mid-size model of benchmarks/bench_mid.yaml, its inputs, and clocks for its
stages.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.memory import NO_THREAD_CACHES, TUNABLES
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, EncoderBatch, PairBatch, PairIds, VisualPrompt

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "tests" / "golden" / "qwen2_vl"
"""A small tokenizer with Qwen2-VL's special tokens; its ids are the first of the vocabulary."""
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
VISION = {"depth": 8, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 4, "hidden_size": 512}
SIDE, QUERY_TOKENS, TARGET_TOKENS = 336, 180, 17
"""Pixels a side of an image; tokens of a query (144 of them of its image) and of a target, before segment tokens."""
PRECISIONS = ("float32", "bfloat16")


def child_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that measures in processes of its own, which are started with the hidden ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def write_model(folder: Path) -> Path:
    """A Qwen2-VL of the mid size with random weights, as `from_pretrained` reads it, with the small tokenizer."""
    said = json.loads((TOKENIZER / "config.json").read_text())
    rope = {"rope_type": "default", "type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    vision = {**said["vision_config"], **VISION}
    sizes = {
        **said,
        **TEXT,
        "vision_config": vision,
        "rope_scaling": rope,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "max_window_layers": 8,
    }
    sizes.pop("virtue_sam")
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(Qwen2VLConfig(**sizes)).save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)
    return folder


def build(folder: Path, precision: str, *overrides: str) -> Virtue:
    """The model of the config, its adapters a little away from where they start."""
    arguments = [
        "--config",
        str(ROOT / "benchmarks" / "bench_mid.yaml"),
        "--shared.vlm",
        str(folder),
        "--shared.dtype",
        precision,
        *overrides,
    ]
    os.chdir(ROOT)
    torch.manual_seed(1)
    model: Any = VirtueCLI("fit", [*arguments, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]).model
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.log = lambda *arguments, **options: None
    return model


def make_image(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    coarse = torch.randint(0, 256, (1, 3, 21, 21), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")[0].to(torch.uint8)


def queries(model: Virtue, numbers: Sequence[int]) -> EncoderBatch:
    """A row with a box for each number; equal numbers are one image."""
    prompts = [
        VisualPrompt(boxes=torch.tensor([[0.1, 0.1 + 0.05 * (row % 8), 0.6, 0.9]])) for row in range(len(numbers))
    ]
    images = [make_image(number) for number in numbers]
    shown = zip(images, prompts, numbers, strict=True)
    batch = model.collator.encoder_batch(
        [EmbeddingInput(IMAGE_TOKEN, (image,), prompt, (str(number),)) for image, prompt, number in shown]
    )
    return with_length(batch, QUERY_TOKENS)


def texts(model: Virtue, lengths: Sequence[int]) -> list[EncoderBatch]:
    """Rows without an image, one each, of so many tokens; no two alike."""
    return [
        with_length(model.collator.encoder_batch([EmbeddingInput("a")]), length, row)
        for row, length in enumerate(lengths)
    ]


def with_length(batch: EncoderBatch, length: int, seed: int = 0) -> EncoderBatch:
    """The rows with random words behind them, `length` tokens in all."""
    more = length - batch.input_ids.shape[1]
    assert more >= 0 and bool(batch.attention_mask.all()) and batch.position_ids is not None
    ids = torch.cat(
        [batch.input_ids, torch.randint(3, 400, (len(batch), more), generator=torch.Generator().manual_seed(seed))],
        dim=1,
    )
    positions = torch.cat([batch.position_ids, batch.position_ids[..., -1:] + 1 + torch.arange(more)], dim=-1)
    return EncoderBatch(ids, torch.ones_like(ids), batch.images, batch.prompts, batch.use_rows, positions)


def together(rows: Sequence[EncoderBatch]) -> EncoderBatch:
    """Rows of texts as one batch, padded on the right."""
    longest = max(row.input_ids.shape[1] for row in rows)

    def pad(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1]))

    ids, mask = (torch.cat([pad(getattr(row, name)) for row in rows]) for name in ("input_ids", "attention_mask"))
    positions = torch.cat([pad(row.position_ids) for row in rows], dim=1)
    return EncoderBatch(ids, mask, rows[0].images, rows[0].prompts, rows[0].use_rows, positions)


def pair_batch(model: Virtue, size: int) -> PairBatch:
    targets = together(texts(model, [TARGET_TOKENS] * size))
    rows = torch.arange(size)
    return PairBatch(
        tuple(map(str, range(size))), queries(model, range(size)), targets, None, PairIds(rows, rows + size)
    )


class Stages:
    """Seconds and CPU seconds by stage; what a stage calls of another counts there alone."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self.inside = [0.0, 0.0]

    def wrap(self, owner: Any, method: str, label: str) -> None:
        original = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(label):
                return original(*arguments, **options)

        setattr(owner, method, timed)

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        began, outside = (time.perf_counter(), time.process_time()), self.inside
        self.inside = [0.0, 0.0]
        yield
        total = [time.perf_counter() - began[0], time.process_time() - began[1]]
        own = [one - other for one, other in zip(total, self.inside, strict=True)]
        spent = self.spent.setdefault(label, [0.0, 0.0, 0])
        self.spent[label] = [spent[0] + own[0], spent[1] + own[1], spent[2] + 1]
        self.inside = [one + other for one, other in zip(outside, total, strict=True)]

    def report(self, rounds: int) -> dict[str, dict[str, float]]:
        names = ("seconds", "cpu_seconds", "calls")
        return {
            label: {name: round(value / rounds, 3) for name, value in zip(names, spent, strict=True)}
            for label, spent in self.spent.items()
        }


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_memory() -> int:
    """Bytes that the process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_peak(precision: str) -> float:
    """GFLOP/s of the machine's matrix product, by CPU time: the best of several of 1536 x 1536."""
    size, dtype = 1536, getattr(torch, precision)
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    left @ right
    return max(2 * size**3 / timed(lambda: left @ right)[1] for _ in range(8)) / 1e9 * torch.get_num_threads()


def run_child(script: str, *arguments: str) -> dict[str, Any]:
    """What a process of its own prints: its peak memory is its own, too. It has the allocator's settings that a command
    has, but for the baseline.
    """
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    if "baseline" not in arguments:
        environment[TUNABLES] = NO_THREAD_CACHES
    done = subprocess.run(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
