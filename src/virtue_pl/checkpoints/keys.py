"""Names of tensors: from the published weights to this package and back.

Published: transformers 4.52 has `model.layers.` and `visual.`, transformers 5 `model.language_model.layers.` and
`model.visual.`; the connector is `sam2_reducer` and `sam2vlm_layer`; SAM 2 has its own names; the published training
code puts `encoder.` or `segmentation_model.` in front, peft `base_model.model.`. Here: the names of
`Virtue.state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from virtue_pl.backbones.segmentation.sam2_weights import VIDEO_TENSORS as SAM2_LEFT_OUT
from virtue_pl.backbones.segmentation.sam2_weights import rename_tensors

LANGUAGE, VISION = "fusion.backbone.model.language_model.", "fusion.backbone.model.visual."
PROMPT_ENCODER, SEGMENTATION = "prompt_encoder.encoder.encoder.", "segmentation.backbone."
REDUCE, PROJECT = "connector.reduce.", "connector.project."
FROM_PUBLISHED = (
    (
        r"^(?:encoder\.)?(?:base_model\.model\.)?(?:model\.language_model|language_model|model)\.(?!visual\.|language_model\.)",
        LANGUAGE,
    ),
    (r"^(?:encoder\.)?(?:base_model\.model\.)?(?:model\.)?visual\.", VISION),
    (r"^(?:segmentation_model\.)?sam2_reducer\.", REDUCE),
    (r"^(?:segmentation_model\.)?sam2vlm_layer\.", PROJECT),
)
TO_PUBLISHED = ((LANGUAGE, "model."), (VISION, "visual."), (REDUCE, "sam2_reducer."), (PROJECT, "sam2vlm_layer."))
HEAD = "lm_head.weight"
"""Name of the head that predicts words, which no embedding needs."""
ADAPTER = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(?:\.(?!(?:weight|bias)$)\w+)?(?:\.weight)?$"
)
"""Pattern of peft's names of an adapter's tensors: with the adapter's own name (`default`) in a model, without in a
file.
"""

SAM2_ORIGINAL = (
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"shared_embedding\.positional_embedding$", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.proj_in\.", ".mlp.first."),
    (r"\.mlp\.proj_out\.", ".mlp.second."),
    (r"\.layers\.0\.(weight|bias)$", r".layers.1.\1"),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
    (r"\.mlp\.first\.", ".mlp.layers.0."),
    (r"\.mlp\.second\.", ".mlp.layers.1."),
)
"""Replacements, in this order, that turn transformers' names of SAM 2's tensors into the original ones;
`sam2_weights.RENAMES` is the other direction.
"""


class AdapterName(NamedTuple):
    """Name of an adapter's tensor, in two parts: its module, by this package's name, and its kind.

    Example:
        >>> adapter_name_here("layers.0.q_proj.lora_A.default.weight")
        AdapterName(module='layers.0.q_proj', kind='lora_A')
    """

    module: str
    kind: Literal["lora_A", "lora_B", "lora_magnitude_vector"]


def from_published(name: str) -> str | None:
    """Return this package's name of a tensor or module of the language model, vision tower or connector.

    None for an unknown one.
    """
    for pattern, prefix in FROM_PUBLISHED:
        if match := re.match(pattern, name):
            return prefix + name[match.end() :]
    return None


def to_published(name: str) -> str | None:
    """Return the published name (transformers 4.52) of a tensor of the language model, vision tower or connector.

    None for another part's.
    """
    for prefix, published in TO_PUBLISHED:
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return None


def adapter_name(name: str) -> AdapterName | None:
    """Return the module and kind of an adapter's tensor by its published name.

    The published training code's names are read, too. None for a tensor of no adapter.
    """
    match = ADAPTER.match(name)
    module = None if match is None else from_published(match["module"])
    return None if match is None or module is None else AdapterName(module, match["kind"])  # type: ignore[arg-type]  # the pattern knows three


def adapter_name_here(name: str) -> AdapterName | None:
    """Return the module and kind of an adapter's tensor by its name in `state_dict()` of this package's models."""
    match = ADAPTER.match(name)
    return None if match is None else AdapterName(match["module"], match["kind"])  # type: ignore[arg-type]  # the pattern knows three


def sam2_from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a SAM 2 checkpoint's tensors under this package's names.

    Those that only track objects in a video come second, under their own names.
    """
    needed = rename_tensors({name: tensor for name, tensor in state.items() if not SAM2_LEFT_OUT.match(name)})
    left_out = {name: tensor for name, tensor in state.items() if SAM2_LEFT_OUT.match(name)}
    return {sam2_name(name): tensor for name, tensor in needed.items()}, left_out


def sam2_name(name: str) -> str:
    """Return this package's name of a tensor of transformers' Sam2."""
    if name.startswith("prompt_encoder."):
        return PROMPT_ENCODER + name.removeprefix("prompt_encoder.")
    return SEGMENTATION + name


def sam2_to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SAM 2's tensors of a model under the original names. The four kinds of points become a table each."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith((PROMPT_ENCODER, SEGMENTATION)):
            continue
        stock = (
            name.removeprefix(SEGMENTATION)
            if name.startswith(SEGMENTATION)
            else "prompt_encoder." + name.removeprefix(PROMPT_ENCODER)
        )
        if stock == "prompt_encoder.point_embed.weight":
            found |= {
                f"sam_prompt_encoder.point_embeddings.{row}.weight": tensor[row : row + 1].clone()
                for row in range(len(tensor))
            }
        else:
            found[original_sam2_name(stock)] = tensor
    return found


def original_sam2_name(name: str) -> str:
    """Return SAM 2's own name of a tensor of transformers' Sam2."""
    for pattern, replacement in SAM2_ORIGINAL:
        name = re.sub(pattern, replacement, name)
    return name


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether both hold the same names with the same types and values, bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
