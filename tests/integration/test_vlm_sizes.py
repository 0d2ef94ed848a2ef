"""The released models at their real size, on the meta device: every parameter that the hub counts is in transformers'
class, or in its head.

Sizes are those of the models' config.json on the hub; counts are what the hub says of their safetensors files
(`safetensors.total`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaOnevisionConfig, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig, SmolVLMConfig

from virtue_pl.backbones.vlm.causal import CausalVLM
from virtue_pl.backbones.vlm.llava_onevision import LlavaOnevisionBackbone
from virtue_pl.backbones.vlm.qwen2_5_vl import Qwen2_5VLBackbone
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.backbones.vlm.qwen3_vl import Qwen3VLBackbone
from virtue_pl.backbones.vlm.smolvlm import SmolVLMBackbone


def text(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int = 151936, **more: Any
) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": kv_heads, **more}


def tower(hidden: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


def rope(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}}


def qwen3(hidden: int, mlp: int, layers: int, heads: int) -> Qwen3VLConfig:
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return Qwen3VLConfig(
        text_config=text(hidden, mlp, layers, heads, 8, head_dim=128, **rope(24, 20, 20)), vision_config=vision
    )


def smolvlm(language: dict[str, Any], vision: dict[str, Any], scale: int) -> SmolVLMConfig:
    return SmolVLMConfig(
        text_config={"model_type": "llama", "head_dim": 64, "pad_token_id": 2, **language},
        vision_config=vision,
        scale_factor=scale,
        image_token_id=49190,
    )


QWEN2_5_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
SIGLIP = {"image_size": 384, "patch_size": 14}

RELEASED: dict[str, tuple[type[CausalVLM], Any, int, int]] = {
    "Qwen2-VL-2B": (
        Qwen2VLBackbone,
        Qwen2VLConfig(
            text_config=text(1536, 8960, 28, 12, 2, **rope(16, 24, 24)),
            vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536},
        ),
        0,
        2_208_985_600,
    ),
    "Qwen2.5-VL-3B": (
        Qwen2_5VLBackbone,
        Qwen2_5_VLConfig(text_config=text(2048, 11008, 36, 16, 2, **rope(16, 24, 24)), vision_config=QWEN2_5_TOWER),
        0,
        3_754_622_976,
    ),
    "Qwen3-VL-2B": (Qwen3VLBackbone, qwen3(2048, 6144, 28, 16), 0, 2_127_532_032),
    "Qwen3-VL-4B": (Qwen3VLBackbone, qwen3(2560, 9728, 36, 32), 0, 4_437_815_808),
    "SmolVLM2-2.2B": (
        SmolVLMBackbone,
        smolvlm(text(2048, 8192, 24, 32, 32, 49280), tower(1152, 4304, 27, 16, **SIGLIP), 3),
        49280 * 2048,
        2_246_784_880,
    ),
    "SmolVLM2-500M": (
        SmolVLMBackbone,
        smolvlm(text(960, 2560, 32, 15, 5, 49280), tower(768, 3072, 12, 12, image_size=512, patch_size=16), 4),
        49280 * 960,
        507_482_304,
    ),
}
"""Class, config, parameters of the head (where it is not tied to the embeddings), and all that the hub counts."""


def on_meta(backbone: type[CausalVLM], config: Any) -> Any:
    with torch.device("meta"):
        return backbone.model_class(config)


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_parameter_is_accounted_for(name: str) -> None:
    backbone, config, head, total = RELEASED[name]
    model = on_meta(backbone, config)
    assert sum(parameter.numel() for parameter in model.parameters()) + head == total
    assert {"layers", "norm", "embed_tokens"} <= {part for part, _ in model.get_decoder().named_children()}
    assert model.get_decoder().embed_tokens.embedding_dim == config.text_config.hidden_size


def test_llava_onevision_has_its_released_shapes() -> None:
    """The 0.5B. What the hub counts of it is not recorded here: the shapes are its config's."""
    language = text(896, 4864, 24, 14, 2, 152000, model_type="qwen2")
    vision = tower(1152, 4304, 26, 16, model_type="siglip_vision_model", vision_use_head=False, **SIGLIP)
    model = on_meta(LlavaOnevisionBackbone, LlavaOnevisionConfig(text_config=language, vision_config=vision))
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["multi_modal_projector.linear_1.weight"] == [896, 1152] and shapes["image_newline"] == [896]
    assert shapes["vision_tower.embeddings.position_embedding.weight"] == [729, 1152]
    assert shapes["language_model.layers.23.self_attn.k_proj.weight"] == [128, 896]
    assert (
        "vision_tower.encoder.layers.25.mlp.fc1.weight" in shapes
        and "vision_tower.encoder.layers.26.mlp.fc1.weight" not in shapes
    )
