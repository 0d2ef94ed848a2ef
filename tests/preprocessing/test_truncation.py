"""What a prompt says is never cut: every formatter, every processor, over lengths and prompts."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.tiny_models import save_text_model
from fixtures.tiny_vlms import TINY
from virtue_pl.backbones.vlm.llava_onevision import LlavaOnevisionProcessor
from virtue_pl.backbones.vlm.qwen_vl import QwenVLProcessor
from virtue_pl.backbones.vlm.smolvlm import SmolVLMProcessor
from virtue_pl.backbones.vlm.timm_text import TimmTextProcessor
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import (
    CropFormatter,
    InputFormatter,
    MarkerFormatter,
    PublishedFormatter,
    VirtueFormatter,
)
from virtue_pl.preprocessing.truncation import format_text, tokenize_pieces
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, VirtueError, VisualPrompt

QWEN = {"min_pixels": 4 * 28 * 28, "max_pixels": 16 * 28 * 28}
PROCESSORS: dict[str, Callable[[Path, int], Any]] = {
    **{
        name: lambda folder, length: QwenVLProcessor(str(folder), **QWEN, max_tokens=length)
        for name in ("Qwen2VLBackbone", "Qwen2_5VLBackbone", "Qwen3VLBackbone")
    },
    "SmolVLMBackbone": lambda folder, length: SmolVLMProcessor(str(folder), 2, length),
    "LlavaOnevisionBackbone": lambda folder, length: LlavaOnevisionProcessor(str(folder), 4, length),
    "TimmTextBackbone": lambda folder, length: TimmTextProcessor(folder, 64, 2, length),
}


class Sentence(VirtueFormatter):
    """Words of its own, in capitals, before the text and behind it."""

    def text(self, item: EmbeddingInput) -> str:
        return f"look: {super().text(item)}!".upper()

    def prompt_lines(self, item: EmbeddingInput) -> list[str]:
        return [line.replace("Referring object bbox", "It is in") for line in super().prompt_lines(item)]

    def delimit_images(self, text: str, delimiters: tuple[str, str]) -> str:
        return super().delimit_images(text.replace(IMAGE_TOKEN.upper(), IMAGE_TOKEN), delimiters)


FORMATTERS: dict[str, InputFormatter] = {
    "virtue": VirtueFormatter(),
    "published": PublishedFormatter(),
    "published evaluation": PublishedFormatter(prompt_frame="canvas", space_after_image=True),
    "crop": CropFormatter(),
    "marker": MarkerFormatter(),
    "its own words": Sentence(),
}
IMAGE = torch.randint(0, 256, (3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SIZE = (60, 90)
PROMPTS = {
    "none": (VisualPrompt(),),
    "box": (VisualPrompt.from_pixels(boxes=[[5, 6, 41, 50]], size=SIZE),),
    "point": (VisualPrompt.from_pixels(points=[[30, 20]], size=SIZE),),
    "two regions": (
        VisualPrompt.from_pixels(boxes=[[5, 6, 41, 50]], size=SIZE),
        VisualPrompt.from_pixels(boxes=[[1, 2, 13, 14]], size=SIZE),
    ),
}
FREE_TEXT = "which of the many things in the house is meant here? "
LENGTHS = (1, 12, 47, 60, 75, 90, 120, 200, 5000)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("processors")
    found = {path.rpartition(".")[2]: save(root / path) for path, save in TINY.items()}
    return {**found, "TimmTextBackbone": save_text_model(root / "text")}


PAIRS = [
    (name, formatter)
    for name in PROCESSORS
    for formatter in FORMATTERS
    if name != "TimmTextBackbone" or not formatter.startswith("published")
]
"""TimmTextBackbone takes no positions, which the published format gives."""


def test_every_backbone_is_tried() -> None:
    assert PROCESSORS.keys() == {path.rpartition(".")[2] for path in TINY} | {"TimmTextBackbone"}
    for path in TINY:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name)


def letters(text: str) -> str:
    return re.sub(r"\s|##", "", text).lower()


def image_id(processor: Any) -> int:
    return getattr(processor, "image_id", TimmTextProcessor.IMAGE_ID)


def decoded(processor: Any, ids: torch.Tensor) -> str:
    tokens = [number for number in ids.tolist() if number != image_id(processor)]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True)


def texts(prompts: tuple[VisualPrompt, ...]) -> list[str]:
    """Long and short, the image in front, in the middle and at the end, and a region that the text itself tells of."""
    told = f"{FREE_TEXT * 2}\nReferring object bbox: [5, 6, 41.5, 50]"
    long = FREE_TEXT * 4
    return [FREE_TEXT, long, f"{long}{IMAGE_TOKEN}", f"{FREE_TEXT}{IMAGE_TOKEN}{long}", told]


@pytest.mark.parametrize("name, formatter", PAIRS)
def test_the_words_of_a_prompt_are_read_or_the_length_is_refused(
    name: str, formatter: str, folders: dict[str, Path]
) -> None:
    cut = refused = 0
    processor = PROCESSORS[name](folders[name], 1)
    collator = ContrastiveCollator(processor, FORMATTERS[formatter], None, {"box": 1.0}, ("box",))
    for prompts in PROMPTS.values():
        for text in texts(prompts):
            item = EmbeddingInput(text, (IMAGE,), prompts[0], ("image",), (), prompts[1:])
            processor.max_tokens = 10_000
            whole = collator.encoder_batch([item, EmbeddingInput("a cat")])
            say = said(FORMATTERS[formatter], item)
            for number, length in enumerate(LENGTHS):
                processor.max_tokens = length
                processor.tokenizer.padding_side = ("left", "right")[number % 2]
                try:
                    batch = collator.encoder_batch([item])
                except VirtueError as error:
                    assert str(error).startswith(f"max_tokens is {length}, expected at least the ")
                    refused += 1
                    continue
                ids, all_ids = batch.input_ids[0], whole.input_ids[0][whole.attention_mask[0].bool()]
                found = letters(decoded(processor, ids))
                assert all(description in found for description in say), (length, text, found)
                images = [int((row == image_id(processor)).sum()) for row in (ids, all_ids)]
                assert images[0] == images[1] > 0
                assert ids[-1] == all_ids[-1] or not isinstance(processor, TimmTextProcessor)
                assert len(ids) - (len(all_ids) - num_text_tokens(collator, item)) <= length
                cut += len(ids) < len(all_ids)
                if length == 5000:
                    assert torch.equal(ids, all_ids), "a text that fits is as it was"
    assert cut > 10 and (refused > 10 or formatter == "crop")


def said(formatter: InputFormatter, item: EmbeddingInput) -> list[str]:
    """What must be read: the region as the formatter tells it, and as the text itself does."""
    prepared = formatter.prepare(item)
    pattern = r"(?:Referring object \w+|IT IS IN|REFERRING OBJECT \w+): [\[(][^\])]*[\])]"
    return [letters(description) for description in re.findall(pattern, formatter.text(prepared))]


def num_text_tokens(collator: ContrastiveCollator, item: EmbeddingInput) -> int:
    """Return the number of the row's tokens that count, were none of them cut."""
    processor, formatter = collator.processor, collator.formatter
    text = format_text(formatter, formatter.prepare(item), processor.image_delimiters)
    own = 2 if isinstance(processor, TimmTextProcessor) else 0
    pieces = tokenize_pieces(processor.tokenizer, text, processor.image_delimiters, 10_000)  # type: ignore[attr-defined]
    return own + sum(map(len, pieces))


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_text_without_a_prompt_is_cut_at_its_end_as_ever(name: str, folders: dict[str, Path]) -> None:
    processor = PROCESSORS[name](folders[name], 20)
    (ids,), _ = processor.tokenize([FREE_TEXT * 3], [[]])
    plain = processor.tokenizer(FREE_TEXT * 3, add_special_tokens=False)["input_ids"]
    if name == "TimmTextBackbone":
        plain = [processor.tokenizer.cls_token_id, *plain[:18], processor.tokenizer.sep_token_id]
    assert ids.tolist() == plain[:20]
    size = processor.resized_size(SIZE)
    before, after = processor.image_delimiters
    (with_image,), _ = processor.tokenize([f"{before}{IMAGE_TOKEN}{after}\n{FREE_TEXT * 3}"], [[size]])
    text = processor.tokenizer(f"{after}\n{FREE_TEXT * 3}", add_special_tokens=False)["input_ids"]
    budget = 18 if name == "TimmTextBackbone" else 20 - bool(before)
    tail = [processor.tokenizer.sep_token_id] if name == "TimmTextBackbone" else []
    assert with_image.tolist()[-(budget + len(tail)) :] == [*text[:budget], *tail]


def test_special_tokens_of_the_text_stay(folders: dict[str, Path]) -> None:
    processor = PROCESSORS["Qwen2VLBackbone"](folders["Qwen2VLBackbone"], 30)
    (ids,), _ = processor.tokenize([f"<|im_start|>user\n{FREE_TEXT * 3}<|im_end|>"], [[]])
    assert len(ids) == 30 and processor.tokenizer.decode(ids[[0, -1]]) == "<|im_start|><|im_end|>"
    with pytest.raises(VirtueError, match=r"max_tokens is 1, expected at least the 2 tokens of what is never cut"):
        tokenize_pieces(processor.tokenizer, f"<|im_start|>{FREE_TEXT}<|im_end|>", ("", ""), 1)
    with pytest.raises(VirtueError, match=r"max_tokens is 0, expected at least the 1 tokens"):
        tokenize_pieces(processor.tokenizer, FREE_TEXT, ("", ""), 0)
