"""Cost of streaming beside decoding: images per second of one worker, from tar to batch, compared to a bare loop.

All times are the process's own, which other work on the machine changes less, and each figure is the median of rounds
in which the compared loops take turns. The process keeps freed memory for the next tensor, as the commands do:
otherwise an image's time is that of mapping its pages. Photograph-like JPEGs are drawn in a temporary folder, and
written as pairs of an official layout.

    python benchmarks/stream.py --rounds 5

- `full_path`: an epoch of `TrainingStream` for a Qwen2-VL: tar, record, sample, one decode, both streams' pixels, token
  ids, batches. The shuffle buffer is a batch long: one as long as the folder would read it again and again for images
  that a batch lacks.
- `bare_loop`: the same JPEGs in memory, decoded and resized for both streams, and nothing else.
- `preprocessing`: a batch of images at their native size, in whole tokens, to the tower's patches: `QwenPatches`
  compared to transformers' image processor (the faster of its two for this); `with_resize` compared to the one that
  resizes by Pillow, as `resize_bicubic` does, which differs where an image grows in width and shrinks in height
  (640 x 480 would become 644 x 476; 640 x 472 grows in both). Transformers repeats a patch's values for each of a
  film's equal frames, `QwenPatches` writes them once; they are compared frame by frame.
- `converter`: rows per second of `virtue-pl shards pairs`, one process, images copied unchanged.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from virtue_pl.backbones.vlm.qwen_patches import QwenPatches
from virtue_pl.backbones.vlm.qwen_vl import QwenVLProcessor
from virtue_pl.cli.memory import join_freed_memory, keep_freed_memory
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.datamodules.pairs import PairDataModule
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.images import decode
from virtue_pl.preprocessing.input_formatters import VirtueFormatter

TOKENS = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXT = "Represent the given image of picture number {number} with the following question: what stands in the middle?"


def main() -> None:
    join_freed_memory()  # as every command does
    options = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jpegs = [photograph(number, options.height, options.width) for number in range(options.images)]
        processor = QwenVLProcessor(save_processor(folder / "model"), 4 * 28 * 28, 1280 * 28 * 28, 2048)
        collator = ContrastiveCollator(processor, VirtueFormatter(), options.canvas_size, {"box": 1.0}, ["no_prompt"])
        converter = measure_converter(folder, jpegs, options)
        found = {
            "stream": compare_stream(folder / "shards" / "photographs", jpegs, collator, options),
            "preprocessing": compare_preprocessing(
                [decode(data, "") for data in jpegs[: options.batch_size]], processor, options.rounds
            ),
            "converter": converter,
        }
    about = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    bars = {
        "share_of_bare_loop": found["stream"]["share"],
        "preprocessing_speedup": found["preprocessing"]["native_size"]["speedup"],
        "converter_rows_per_second": converter["rows_per_second"],
    }
    print(json.dumps({"settings": vars(options), **about, **bars, **found}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement, after one that is not counted")
    parser.add_argument("--images", type=int, default=256, help="different images, which are an epoch")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a batch")
    parser.add_argument("--height", type=int, default=472, help="of the images, in pixels")
    parser.add_argument("--width", type=int, default=640, help="of the images, in pixels")
    parser.add_argument(
        "--canvas_size", type=int, default=1024, help="height and width of the segmentation model's input, in pixels"
    )
    parser.add_argument(
        "--rows", type=int, default=3000, help="rows that are converted, each with an image of its own name"
    )
    return parser.parse_args()


def photograph(number: int, height: int, width: int) -> bytes:
    """Return a JPEG with the smooth surfaces and the grain of a photograph, of about its size."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    stream = io.BytesIO()
    grain = random.integers(-8, 9, smooth.shape, dtype=np.int16)
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=87)
    return stream.getvalue()


def save_processor(folder: Path) -> str:
    """Write the files of a Qwen2-VL that its processor reads, with a tokenizer of single bytes."""
    tokenizer = Tokenizer(
        models.BPE({symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=TOKENS[0], pad_token=TOKENS[0])
    for part in (
        fast,
        Qwen2VLImageProcessor(),
        Qwen2VLConfig(image_token_id=fast.convert_tokens_to_ids("<|image_pad|>")),
    ):
        part.save_pretrained(folder)
    return str(folder)


def measure_converter(folder: Path, jpegs: Sequence[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Write the images and `rows` pairs about them, convert them, and return the speed.

    The shards for the stream, with one pair for each image, are written beside them.
    """
    write_pairs(folder / "many", "many", jpegs, options.rows)
    write_pairs(folder / "few", "photographs", jpegs, len(jpegs))
    convert_pairs(folder / "few", folder / "shards")
    folders = [folder / f"many_shards_{number}" for number in range(options.rounds)]
    seconds = statistics.median(cpu_seconds(partial(convert_pairs, folder / "many", each)) for each in folders)
    return {"rows": options.rows, "cpu_seconds": round(seconds, 2), "rows_per_second": round(options.rows / seconds)}


def write_pairs(folder: Path, name: str, jpegs: Sequence[bytes], rows: int) -> None:
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(rows):
        (folder / "images" / f"{number}.jpg").write_bytes(jpegs[number % len(jpegs)])
        lines.append(
            json.dumps(
                {
                    "query": TEXT.format(number=number),
                    "query_image": f"images/{number}.jpg",
                    "target": f"answer {number}",
                }
            )
        )
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare_stream(
    shards: Path, jpegs: Sequence[bytes], collator: ContrastiveCollator, options: argparse.Namespace
) -> dict[str, Any]:
    size = options.batch_size
    data = PairDataModule(
        str(shards),
        batch_size=size,
        sampling=SamplingOptions(shuffle_buffer=size, sample_buffer=1),
        reader=ReaderOptions(max_bad_samples=0, max_consecutive_bad=0),
    )
    data.connect(collator)
    loader = data.train_dataloader()
    batches = range(0, len(jpegs) - size + 1, size)

    def full() -> None:
        found = [batch.queries.images for batch in loader]
        counts = [(len(images.vision), len(images.segmentation)) for images in found]
        assert counts == [(size, size) for _ in batches]

    def bare() -> None:
        for start in batches:
            [
                (collator.processor.resize(image), collator.formatter.segmentation_pixels(image, options.canvas_size))
                for image in decoded(start)
            ]

    def decoded(start: int) -> Iterator[Tensor]:
        return (decode(jpeg, "") for jpeg in jpegs[start : start + size])

    full_seconds, bare_seconds = in_turns([full, bare], options.rounds)
    rates = {
        "full_path": round(len(batches) * size / full_seconds, 1),
        "bare_loop": round(len(batches) * size / bare_seconds, 1),
    }
    return {"pictures_per_second": rates, "share": round(bare_seconds / full_seconds, 3)}


def compare_preprocessing(images: Sequence[Tensor], processor: QwenVLProcessor, rounds: int) -> dict[str, Any]:
    """Compare preprocessing image by image, in speed and in pixels."""
    fast, same = Qwen2VLImageProcessor(), Qwen2VLImageProcessorPil()
    resized = [processor.resize(image).contiguous() for image in images]
    arrays = [image.numpy() for image in images]
    stock: dict[str, Callable[[], list[Tensor]]] = {
        "native_size": lambda: [fast(image, do_resize=False, return_tensors="pt")["pixel_values"] for image in resized],
        "with_resize": lambda: [
            same(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"] for image in arrays
        ],
    }
    patches: QwenPatches = processor.patches
    lean: dict[str, Callable[[], list[Tensor]]] = {
        "native_size": lambda: [patches([image])[0] for image in resized],
        "with_resize": lambda: [patches([processor.resize(image)])[0] for image in images],
    }
    return {name: compare_processors(lean[name], stock[name], len(images), rounds) for name in stock}


def compare_processors(
    lean: Callable[[], list[Tensor]], stock: Callable[[], list[Tensor]], count: int, rounds: int
) -> dict[str, Any]:
    """Compare two processors in speed and in pixels; `lean` writes one of the equal frames of `stock`."""
    frames = (
        (a.unflatten(1, (3, 1, -1)), b.unflatten(1, (3, -1, a.shape[1] // 3)))
        for a, b in zip(lean(), stock(), strict=True)
    )
    difference = max(float((one - all_equal).abs().max()) for one, all_equal in frames)
    lean_seconds, stock_seconds = in_turns([lean, stock], rounds)
    rates = {"lean": round(count / lean_seconds, 1), "transformers": round(count / stock_seconds, 1)}
    return {
        "pictures_per_second": rates,
        "speedup": round(stock_seconds / lean_seconds, 2),
        "largest_difference": difference,
    }


def in_turns(loops: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Return the median CPU seconds of each loop."""
    for loop in loops:
        loop()
    times = [[cpu_seconds(loop) for loop in loops] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
