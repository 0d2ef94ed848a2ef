"""The sections of benchmarks/gpu.py: models of virtue_2b's shapes with random weights on a device, and their rows.

Each function that takes a `Setting` and a mapping is a section, and runs in a process of its own: it fills the mapping
with what it finds, and yields how far it is.
"""

from __future__ import annotations

import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from agreement import check, compare_gradients, save_gradients
from published import Published
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers.initialization import no_init_weights

from virtue_pl.callbacks.throughput import device_name, parts_of, peak_memory
from virtue_pl.cli.described import DescribedCLI
from virtue_pl.engine.estimation.devices import find_device
from virtue_pl.engine.estimation.estimate import estimate_step
from virtue_pl.engine.estimation.row_flops import COUNTED_ROWS, counting, flops_per_token
from virtue_pl.engine.estimation.step_trace import KINDS
from virtue_pl.engine.gradient_cache import GradientCache
from virtue_pl.types import EmbeddingBatch, EmbeddingInput, EncoderBatch, PairBatch, Region, Sample

CONFIG = Path(__file__).parents[1] / "configs" / "virtue_2b.yaml"
OURS, STOCK = "ours", "stock"
MOST_REPEATS = 20


@dataclass(frozen=True)
class Setting:
    """Sizes of what is measured.

    device: torch's name of it. tiny: small networks and images instead of virtue_2b's. batch_size: pairs of a training
    step. chunk_sizes: rows that a gradient cache encodes at once, of which each is measured. encoded: rows of an
    encoded batch of images. seconds: of measuring each thing, behind a step or batch that is not measured.
    """

    device: str
    tiny: bool
    batch_size: int
    chunk_sizes: tuple[int, ...]
    encoded: int
    seconds: float

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        return (56, 84) if self.tiny else (480, 640)

    @property
    def text_tokens(self) -> tuple[int, int]:
        """Tokens of a query's text, beside its image and its box, and of a target."""
        return (8, 6) if self.tiny else (40, 20)


def train(setting: Setting, found: dict[str, Any], whose: str) -> Iterator[str]:
    """Measure training steps at each chunk size: the gradient cache, clipping and AdamW, in bfloat16."""
    yield "building the model"
    source, context = build(setting, "bfloat16"), in_bfloat16(setting)
    yield "making rows"
    batch = pair_batch(source, setting, setting.batch_size).to(setting.device)
    parts = parts_of(batch)
    tokens = {name: sum(part.layout.token_counts) for name, part in parts.items()}
    flops = sum(flops_per_token(source, part, context()) * tokens[name] for name, part in parts.items())
    model = source if whose == OURS else stock_of(source, context)
    del source
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0)
    found |= {**about(setting), "batch_size": len(batch), "tokens": sum(tokens.values())}
    found["gflop_a_step"] = round(flops / 1e9, 3)
    found["trained_parameters"] = sum(parameter.numel() for parameter in trained)
    yield "the loss without dropout"
    found["loss"] = loss_without_dropout(model.eval(), batch, setting.chunk_sizes[0], context)
    model.train()
    found["chunks"] = []
    for chunk_size in setting.chunk_sizes:

        def step(chunk_size: int = chunk_size) -> None:
            run_step(model, batch, chunk_size, context)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        times: list[float] = []
        yield from measure(step, setting, times, f"chunk {chunk_size}, step")
        seconds = statistics.median(times)
        found["chunks"].append(
            {
                "chunk_size": chunk_size,
                "steps": len(times),
                "seconds_a_step": round(seconds, 4),
                "samples_per_second": round(len(batch) / seconds, 3),
                **rates(setting, sum(tokens.values()) / seconds, flops / seconds),
            }
        )


def encode(setting: Setting, found: dict[str, Any], whose: str) -> Iterator[str]:
    """Measure the encoding of images with a box, and of texts, in bfloat16."""
    yield "building the model"
    source, context = build(setting, "bfloat16"), in_bfloat16(setting)
    yield "making rows"
    batch = pair_batch(source, setting, setting.encoded).to(setting.device)
    parts = {"images": batch.queries, "texts": batch.targets}
    flops = {name: forward_flops(source, part, context) for name, part in parts.items()}
    model = (source if whose == OURS else stock_of(source, context)).eval()
    del source
    found |= about(setting)
    found["embedding"] = embed(model, batch.queries.select([0]), context)[0].float().tolist()
    for name, part in parts.items():
        times: list[float] = []
        yield from measure(partial(embed, model, part, context), setting, times, f"{name}, batch")
        seconds, tokens = statistics.median(times), sum(part.layout.token_counts)
        found[name] = {
            "rows": len(part),
            "batches": len(times),
            "seconds_a_batch": round(seconds, 4),
            "rows_per_second": round(len(part) / seconds, 2),
            **rates(setting, tokens / seconds, flops[name] * tokens / seconds),
        }


def agree(setting: Setting, found: dict[str, Any]) -> Iterator[str]:
    """Compare loss and gradients of a step of the tiny networks in float32, without dropout, to the baseline's.

    Raises SystemExit where they differ by more than sums in another order.
    """
    yield "building tiny models"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    tiny = replace(setting, tiny=True)
    source = build(tiny, "float32").eval()
    batch = pair_batch(source, tiny, 6).to(setting.device)
    models = {OURS: source, STOCK: stock_of(source, nullcontext).eval()}
    with tempfile.TemporaryDirectory() as folder:
        files, losses = [], []
        for name, model in models.items():
            yield f"a step of {name}"
            losses.append(run_step(model, batch, 2, nullcontext))
            files.append(Path(folder) / f"{name}.safetensors")
            save_gradients(model, files[-1])
            model.zero_grad()
        found |= {**about(setting), **compare_gradients((losses[0], losses[1]), (files[0], files[1]))}
    check(found)


def estimate(setting: Setting, found: dict[str, Any]) -> Iterator[str]:
    """Foretell a training step's memory and operations on the meta device, as `virtue-pl estimate` does."""
    yield "on the meta device"
    model = build(replace(setting, device="meta"), "bfloat16")
    began = time.perf_counter()
    step = estimate_step(model, lambda count: pair_batch(model, setting, count).to("meta"), torch.bfloat16)
    found |= {"batch_size": setting.batch_size, "seconds": round(time.perf_counter() - began, 1), "chunks": []}
    for chunk_size in setting.chunk_sizes:
        memory = step.memory(setting.batch_size, chunk_size)
        found["chunks"].append(
            {
                "chunk_size": chunk_size,
                "peak_bytes": sum(memory.values()),
                "memory": {kind: memory[kind] for kind in KINDS},
                "gflop_a_step": round(step.model_flops(setting.batch_size, chunk_size) / 1e9, 3),
            }
        )


def build(setting: Setting, dtype: str) -> Any:
    """Return the model of configs/virtue_2b.yaml, in training, with random weights that are made on the device.

    dtype: of the language model's frozen weights.
    """
    options = {"config": str(CONFIG), "data": "null", "trainer.accelerator": "cpu", "trainer.logger": "false"}
    options["model.init_args.fusion.init_args.backbone.init_args.dtype"] = dtype
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if setting.tiny:
            layer = Path(folder) / "tiny.yaml"
            layer.write_text(yaml.safe_dump(tiny_layer()))
            arguments += ["--config", str(layer)]

        class DeviceCLI(DescribedCLI):
            build_on = setting.device

        model: Any = DeviceCLI("fit", arguments).model
    if setting.device != "meta":
        randomise(model)
    model.log = lambda *_, **__: None
    return model.train()


def tiny_layer() -> dict[str, Any]:
    """Return a layer over the config: networks of two layers and a canvas of 128 pixels."""
    sizes = yaml.safe_load(CONFIG.read_text())["shared"]["vlm_sizes"]
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    sizes.update({name: 300 + number for number, name in enumerate(tokens)})
    sizes["text_config"] |= {
        **{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    sizes["vision_config"] |= {"depth": 2, "embed_dim": 64, "num_heads": 2, "hidden_size": 64}
    segmentation = {"width": 16, "blocks": [1, 1, 2, 1], "global_attention": [3], "position_grid": [7, 7]}
    return {
        "shared": {"vlm_sizes": sizes, "canvas_size": 128, "embed_dim": 64},
        "model": {"init_args": {"segmentation": {"init_args": {"backbone": {"init_args": segmentation}}}}},
    }


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw all weights anew, in place: matrices with standard deviation 0.02, scales 1, biases 0.

    DoRA's lengths are those of the maps that they belong to, so that the model computes what its weights say.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            layer = model.get_submodule(name.partition(".lora_magnitude_vector")[0])
            parameter.copy_(layer.get_base_layer().weight.float().norm(dim=1))  # type: ignore[operator, union-attr]


def pair_batch(model: Any, setting: Setting, count: int) -> PairBatch:
    """Return a training batch, on the host: images of noise with a box, and texts of random letters, none twice."""
    return model.collator.collate_train([make_sample(setting, number) for number in range(count)])  # type: ignore[no-any-return]


def make_sample(setting: Setting, number: int) -> Sample:
    generator, letters = torch.Generator().manual_seed(number), random.Random(number)
    query_text, target_text = (
        "".join(letters.choices(string.ascii_lowercase, k=length)) for length in setting.text_tokens
    )
    image = torch.randint(0, 256, (3, *setting.image), dtype=torch.uint8, generator=generator)
    query = EmbeddingInput(query_text, (image,), image_keys=(str(number),))
    region = Region(torch.tensor([0.1, 0.1 + 0.05 * (number % 8), 0.6, 0.9]))
    return Sample(f"random/{number}", "random", query, EmbeddingInput(target_text), region=region)


def stock_of(source: Any, precision: Callable[[], AbstractContextManager[Any]]) -> Any:
    """Return the published code on stock transformers and peft with the weights of our model, on its device."""
    network = source.fusion.backbone.model
    config = network.config
    config.tie_word_embeddings = True  # as in Qwen2-VL-2B
    dtype = next(network.parameters()).dtype
    with no_init_weights(), next(network.parameters()).device:
        vlm = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = Published(source, vlm, precision)
    model.vlm.tie_weights()
    model.sam.eval()
    model.vlm.model.visual.eval()
    return model


def run_step(model: Any, batch: PairBatch, chunk_size: int, context: Callable[[], Any]) -> float:
    """Compute the gradients of a batch, encoded in chunks, and return the loss."""
    if isinstance(model, Published):
        return float(model.step(batch, chunk_size))
    model.gradient_cache = GradientCache(chunk_size)
    with context():
        loss = model.training_step(batch, 0)
    loss.backward()
    return float(loss.detach())


@torch.no_grad()
def embed(model: Any, rows: EncoderBatch, context: Callable[[], Any]) -> Tensor:
    with context():
        embeddings: Tensor = model.encode(rows)
    return embeddings


def loss_without_dropout(model: Any, batch: PairBatch, chunk_size: int, context: Callable[[], Any]) -> float:
    """Return the loss of a batch by a model in evaluation mode."""
    parts = (batch.queries, batch.targets)
    queries, targets = (
        torch.cat([embed(model, chunk, context).float() for chunk in part.split(chunk_size)]) for part in parts
    )
    with torch.no_grad():
        return float(model.loss(EmbeddingBatch(queries, targets, targets[:0], batch.ids)).loss)


def forward_flops(model: Any, rows: EncoderBatch, context: Callable[[], Any]) -> float:
    """Return the operations of a token's encoding, counted on the first rows."""
    few = rows.select(range(min(COUNTED_ROWS, len(rows))))
    with counting() as counter:
        embed(model, few, context)
    return float(counter.get_total_flops()) / sum(few.layout.token_counts)


def measure(work: Callable[[], Any], setting: Setting, times: list[float], what: str) -> Iterator[str]:
    """Append the seconds of each repeat, of which there is at least one, behind a repeat that is not measured.

    The peak of a GPU's memory begins with what is held before; that of a process on a CPU is its whole life's.
    """
    yield f"{what}, not measured"
    if setting.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    timed(work, setting)
    began = time.perf_counter()
    while not times or (time.perf_counter() - began < setting.seconds and len(times) < MOST_REPEATS):
        yield f"{what} {len(times) + 1}"
        times.append(timed(work, setting))


def timed(work: Callable[[], Any], setting: Setting) -> float:
    """Return the seconds until the device has done the work."""
    wait_for(setting)
    began = time.perf_counter()
    work()
    wait_for(setting)
    return time.perf_counter() - began


def wait_for(setting: Setting) -> None:
    if setting.device != "cpu":
        torch.cuda.synchronize()


def in_bfloat16(setting: Setting) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context of mixed precision, as `bf16-mixed` does."""
    return partial(torch.autocast, torch.device(setting.device).type, torch.bfloat16)


def rates(setting: Setting, tokens: float, flops: float) -> dict[str, float | None]:
    """Return tokens and teraflops a second, the share of the device's peak, where that is known, and peak memory."""
    device = torch.device(setting.device)
    data_sheet = find_device(device_name(device))
    return {
        "tokens_per_second": round(tokens, 1),
        "model_tflops": round(flops / 1e12, 4),
        "mfu": None if data_sheet is None else round(flops / data_sheet.peak(torch.bfloat16), 4),
        "peak_bytes": peak_memory(device),
    }


def about(setting: Setting) -> dict[str, Any]:
    """Return the device's name."""
    return {"device": device_name(torch.device(setting.device))}


SECTIONS: dict[str, Callable[[Setting, dict[str, Any]], Iterator[str]]] = {
    "agreement": agree,
    "ours: training": partial(train, whose=OURS),
    "stock: training": partial(train, whose=STOCK),
    "ours: encoding": partial(encode, whose=OURS),
    "stock: encoding": partial(encode, whose=STOCK),
    "estimate": estimate,
}
"""What is measured, by name, in order."""
