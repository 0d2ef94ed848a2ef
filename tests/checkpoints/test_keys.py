"""One map between published names and this package's, in both directions, at the sizes of the real models."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from fixtures.recorded import GOLDEN
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.segmentation.sam2_weights import rename
from virtue_pl.checkpoints import keys


def sam2_names(width: int, blocks: tuple[int, ...], global_attention: tuple[int, ...]) -> list[str]:
    with torch.device("meta"):
        backbone, encoder = Sam2Backbone(None, width, 1, blocks, global_attention), Sam2PromptEncoder()
    inside = [f"prompt_encoder.{name}" for name in encoder.encoder.state_dict()]
    return [*backbone.state_dict(), *inside]


@pytest.mark.parametrize(
    ("width", "blocks", "attention"),
    [(96, (1, 2, 7, 2), (5, 7, 9)), (112, (2, 3, 16, 3), (12, 16, 20)), (144, (2, 6, 36, 4), (23, 33, 43))],
)
def test_sam2_has_its_own_names_and_comes_back(width, blocks, attention):
    names = [name for name in sam2_names(width, blocks, attention) if not name.endswith("point_embed.weight")]
    originals = [keys.original_sam2_name(name) for name in names]
    assert [rename(name) for name in originals] == names
    assert len(set(originals)) == len(names)
    tops = {"image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed"}
    assert {name.split(".")[0] for name in originals} == tops


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("vision_encoder.backbone.blocks.0.mlp.proj_in.weight", "image_encoder.trunk.blocks.0.mlp.layers.0.weight"),
        ("vision_encoder.backbone.blocks.0.mlp.proj_out.bias", "image_encoder.trunk.blocks.0.mlp.layers.1.bias"),
        ("vision_encoder.neck.convs.3.weight", "image_encoder.neck.convs.3.conv.weight"),
        ("mask_decoder.iou_prediction_head.layers.0.weight", "sam_mask_decoder.iou_prediction_head.layers.1.weight"),
        ("mask_decoder.iou_prediction_head.proj_out.weight", "sam_mask_decoder.iou_prediction_head.layers.2.weight"),
        (
            "mask_decoder.transformer.layers.0.self_attn.o_proj.bias",
            "sam_mask_decoder.transformer.layers.0.self_attn.out_proj.bias",
        ),
        ("mask_decoder.transformer.layer_norm_final_attn.bias", "sam_mask_decoder.transformer.norm_final_attn.bias"),
        (
            "prompt_encoder.shared_embedding.positional_embedding",
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        ("prompt_encoder.mask_embed.layer_norm2.weight", "sam_prompt_encoder.mask_downscaling.4.weight"),
    ],
)
def test_names_of_sam2_that_are_easily_mixed_up(ours, theirs):
    assert keys.original_sam2_name(ours) == theirs


def test_every_recorded_name_of_qwen2_vl_goes_there_and_back():
    with safe_open(GOLDEN / "qwen2_vl" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    ours = [keys.from_published(name) for name in names]
    assert [keys.to_published(str(name)) for name in ours] == names
    assert len(set(ours)) == len(names) and all(str(name).startswith((keys.LANGUAGE, keys.VISION)) for name in ours)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("model.layers.3.mlp.down_proj.weight", f"{keys.LANGUAGE}layers.3.mlp.down_proj.weight"),
        ("model.language_model.layers.3.mlp.down_proj.weight", f"{keys.LANGUAGE}layers.3.mlp.down_proj.weight"),
        ("visual.merger.mlp.0.bias", f"{keys.VISION}merger.mlp.0.bias"),
        ("model.visual.merger.mlp.0.bias", f"{keys.VISION}merger.mlp.0.bias"),
        ("encoder.model.norm.weight", f"{keys.LANGUAGE}norm.weight"),
        ("segmentation_model.sam2_reducer.weight", "connector.reduce.weight"),
        ("sam2vlm_layer.2.bias", "connector.project.2.bias"),
        ("lm_head.weight", None),
        ("classifier.weight", None),
    ],
)
def test_names_of_both_generations_and_of_a_training_run(name, ours):
    assert keys.from_published(name) == ours


@pytest.mark.parametrize("kind", ["lora_A", "lora_B", "lora_magnitude_vector"])
@pytest.mark.parametrize("suffix", ["", ".weight", ".default.weight", ".default"])
@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.model.",
        "encoder.base_model.model.model.",
        "base_model.model.model.language_model.",
        "base_model.model.language_model.",
    ],
)
def test_adapters_by_every_name_that_peft_gives_them(prefix, kind, suffix):
    found = keys.adapter_name(f"{prefix}layers.1.self_attn.q_proj.{kind}{suffix}")
    assert found == (f"{keys.LANGUAGE}layers.1.self_attn.q_proj", kind)


@pytest.mark.parametrize(
    "name",
    ["base_model.model.model.layers.1.self_attn.q_proj.weight", "sam2_reducer.weight", "other.q_proj.lora_A.weight"],
)
def test_what_is_no_adapter_of_the_model(name):
    assert keys.adapter_name(name) is None
