"""The mid-size model of benchmarks/bench_mid.yaml, its inputs, and clocks for its stages."""

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
IMAGE_SIZE, QUERY_TOKENS, TARGET_TOKENS = 336, 180, 17
"""Height and width of an image in pixels; tokens of a query (144 of its image) and of a target, without segments."""
PRECISIONS = ("float32", "bfloat16")


def child_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that measures in child processes, which are started with the hidden options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def write_model(folder: Path) -> Path:
    """Write a Qwen2-VL of the mid size with random weights and the small tokenizer, for `from_pretrained`."""
    config = json.loads((TOKENIZER / "config.json").read_text())
    rope = {"rope_type": "default", "type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    vision = {**config["vision_config"], **VISION}
    sizes = {
        **config,
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
    """Return the model of the config, its adapters moved slightly from their initial values."""
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
    return torch.nn.functional.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear")[0].to(torch.uint8)


def queries(model: Virtue, numbers: Sequence[int]) -> EncoderBatch:
    """Return a batch with a row with a box for each number; equal numbers are one image."""
    prompts = [
        VisualPrompt(boxes=torch.tensor([[0.1, 0.1 + 0.05 * (row % 8), 0.6, 0.9]])) for row in range(len(numbers))
    ]
    images = [make_image(number) for number in numbers]
    rows = zip(images, prompts, numbers, strict=True)
    batch = model.collator.encoder_batch(
        [EmbeddingInput(IMAGE_TOKEN, (image,), prompt, (str(number),)) for image, prompt, number in rows]
    )
    return with_length(batch, QUERY_TOKENS)


def texts(model: Virtue, lengths: Sequence[int]) -> list[EncoderBatch]:
    """Return batches of one text each, of the given numbers of tokens; no two texts are equal."""
    return [
        with_length(model.collator.encoder_batch([EmbeddingInput("a")]), length, row)
        for row, length in enumerate(lengths)
    ]


def with_length(batch: EncoderBatch, length: int, seed: int = 0) -> EncoderBatch:
    """Return the rows with random tokens appended, `length` tokens in all."""
    more = length - batch.input_ids.shape[1]
    assert more >= 0 and bool(batch.attention_mask.all()) and batch.position_ids is not None
    ids = torch.cat(
        [batch.input_ids, torch.randint(3, 400, (len(batch), more), generator=torch.Generator().manual_seed(seed))],
        dim=1,
    )
    positions = torch.cat([batch.position_ids, batch.position_ids[..., -1:] + 1 + torch.arange(more)], dim=-1)
    return EncoderBatch(ids, torch.ones_like(ids), batch.images, batch.prompts, batch.use_rows, positions)


def together(rows: Sequence[EncoderBatch]) -> EncoderBatch:
    """Return rows of texts as one batch, padded on the right."""
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
    """Seconds and CPU seconds by stage; a stage that another one calls counts alone."""

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
    """Run `work`, and return its seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_memory() -> int:
    """Return the peak resident memory of the process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_peak(precision: str) -> float:
    """Return the GFLOP/s of the machine's matrix product, by CPU time: the best of several of 1536 x 1536."""
    size, dtype = 1536, getattr(torch, precision)
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    left @ right
    return max(2 * size**3 / timed(lambda: left @ right)[1] for _ in range(8)) / 1e9 * torch.get_num_threads()


def run_child(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in a process of its own, and return the JSON object that it prints last.

    It has the allocator's settings of a command, unless it is the baseline.
    """
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    if "baseline" not in arguments:
        environment[TUNABLES] = NO_THREAD_CACHES
    done = subprocess.run(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
