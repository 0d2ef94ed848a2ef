"""Published SAM 2 checkpoints under transformers' names: the original `.pt` renamed, a hub folder as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virtue_pl.backbones.hub_models import check_available
from virtue_pl.backbones.strict_weights import load_parts
from virtue_pl.engine.weight_files import load_pickled
from virtue_pl.types import VirtueError

RENAMES = (
    (r"\.layers\.0\.(weight|bias)$", r".proj_in.\1"),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"\.layers\.2\.(weight|bias)$", r".proj_out.\1"),
    (r"\.layers\.1\.(weight|bias)$", r".layers.0.\1"),
)
"""From the original names to transformers', in this order: an MLP's first layer is renamed before its second takes the
number.
"""
POINTS = re.compile(r"prompt_encoder\.point_embeddings\.(\d)\.weight")
VIDEO_TENSORS = re.compile(
    r"memory_attention\.|memory_encoder\.|maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial|mask_downsample\.|obj_ptr_proj\.|obj_ptr_tpos_proj\."
)
"""Original names of the tensors that track an object through a video, which are not loaded."""


def load_sam2(parts: Mapping[str, nn.Module | nn.Parameter], weights: str | Path) -> None:
    """Load each part from the tensors under its prefix.

    Raises VirtueError for a missing tensor, an unknown one, or one of another shape.
    """
    load_parts(parts, read_sam2(str(weights)), str(weights), "SAM 2")


def read_sam2(weights: str) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under transformers' names. Raises VirtueError where it is not one of SAM 2."""
    if not weights.endswith(".pt"):
        return read_pretrained(weights)
    if not Path(weights).is_file():
        raise VirtueError(
            f"weights: {weights} is not there, expected SAM 2's checkpoint or a folder of transformers' Sam2; null for"
            " random weights"
        )
    state = load_pickled(weights, mmap=True)
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise VirtueError(f"weights: {weights} has no entry 'model', expected an original SAM 2 checkpoint")
    return rename_tensors({name: tensor for name, tensor in state["model"].items() if not VIDEO_TENSORS.match(name)})


def read_pretrained(name: str) -> dict[str, Tensor]:
    """Return the tensors of a folder or hub name of transformers' Sam2.

    Raises VirtueError where the folder, or a tensor in it, is missing.
    """
    from transformers import Sam2Model

    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise VirtueError(
            f"weights: the folder {name} is not there, expected one of transformers' Sam2, or a name of the hub"
        )
    check_available(name, "weights")
    loaded: Any = Sam2Model.from_pretrained(name, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:
        raise VirtueError(
            f"weights: {name} lacks {len(report['missing_keys'])} tensors of SAM 2, e.g."
            f" {sorted(report['missing_keys'])[0]}"
        )
    return dict(model.state_dict())


def rename_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's tensors under transformers' names, the four kinds of point as rows of one table."""
    found = {rename(name): tensor for name, tensor in state.items()}
    points = sorted(name for name in found if POINTS.fullmatch(name))
    if points:
        found["prompt_encoder.point_embed.weight"] = torch.cat([found.pop(name) for name in points])
    return found


def rename(name: str) -> str:
    """Return an original tensor's name in transformers' model."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
