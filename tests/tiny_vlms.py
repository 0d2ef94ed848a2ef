"""Tiny random vision-language models, one for each backbone, in the layout of the hub: what every test of all backbones
goes through.

A new backbone is one function here, and one line of `TINY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMModel,
)

HIDDEN = 64
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Sizes of every language model: three layers, so that what is added behind two of them is read by another."""

QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SMOL_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SMOL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *SMOL_TILES,
]


def byte_tokenizer(special: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each byte, two merges (of "th" and of two line feeds), and the model's own tokens; the first one
    pads.
    """
    line = pre_tokenizers.ByteLevel.alphabet()
    merges = [("t", "h"), ("Ċ", "Ċ")]
    vocabulary = {symbol: index for index, symbol in enumerate([*sorted(line), *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    first = next(iter(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=first, pad_token=first)


def save(
    folder: Path, model_class: Callable[[PreTrainedConfig], Any], config: PreTrainedConfig, *processors: Any
) -> Path:
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + float("norm" in name and name.endswith("weight")))
    for part in (model, *processors):
        part.save_pretrained(folder)
    return folder


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    tokens = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    tokens |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def qwen_text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return {**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, **more}


def save_qwen2_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(QWEN_TOKENS)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2}
    return save(
        folder,
        Qwen2VLModel,
        Qwen2VLConfig(text_config=qwen_text(tokenizer), vision_config=vision, **qwen_ids(tokenizer)),
        *qwen_parts(tokenizer),
    )


def save_qwen2_5_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(QWEN_TOKENS)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": HIDDEN,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=qwen_text(tokenizer), vision_config=vision, **qwen_ids(tokenizer))
    return save(folder, Qwen2_5_VLModel, config, *qwen_parts(tokenizer))


def save_qwen3_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(QWEN_TOKENS)
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": HIDDEN, "num_heads": 2}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    config = Qwen3VLConfig(text_config=qwen_text(tokenizer, head_dim=16), vision_config=vision, **qwen_ids(tokenizer))
    half = [0.5, 0.5, 0.5]
    return save(folder, Qwen3VLModel, config, *qwen_parts(tokenizer, patch_size=16, image_mean=half, image_std=half))


def qwen_parts(tokenizer: PreTrainedTokenizerFast, **image: Any) -> tuple[Any, Any]:
    return tokenizer, Qwen2VLImageProcessor(**image)


def save_llava_onevision(folder: Path) -> Path:
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    side, patch = 28, 7
    grids = [[side * rows, side * columns] for rows in (1, 2) for columns in (1, 2)]
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer)},
        vision_config={**vision, "image_size": side, "patch_size": patch, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    size = {"height": side, "width": side}
    images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grids)
    processor = LlavaOnevisionProcessor(
        images,
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
    )
    return save(folder, LlavaOnevisionModel, config, processor)


def save_smolvlm(folder: Path) -> Path:
    tokenizer = byte_tokenizer(SMOL_TOKENS)
    side = 32
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 8,
    }
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            **TEXT,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})
    return save(folder, SmolVLMModel, config, tokenizer, images)


TINY: dict[str, Callable[[Path], Path]] = {
    "virtue_pl.backbones.LlavaOnevisionBackbone": save_llava_onevision,
    "virtue_pl.backbones.Qwen2VLBackbone": save_qwen2_vl,
    "virtue_pl.backbones.Qwen2_5VLBackbone": save_qwen2_5_vl,
    "virtue_pl.backbones.Qwen3VLBackbone": save_qwen3_vl,
    "virtue_pl.backbones.SmolVLMBackbone": save_smolvlm,
}
"""The class path of each backbone that reads a `vlm_model`, and what writes a tiny one for it."""
