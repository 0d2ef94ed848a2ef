"""The one map between the names of published weights and this package's.

Published: transformers 4.52 says `model.layers.` and `visual.`, transformers 5 `model.language_model.layers.` and
`model.visual.`; the
connector is `sam2_reducer` and `sam2vlm_layer`; SAM 2 has its own names; a training run puts `encoder.` or
`segmentation_model.` in
front, peft puts `base_model.model.`. Here: the names of `Virtue.state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from virtue_pl.backbones.segmentation.sam2_weights import LEFT_OUT as SAM2_LEFT_OUT
from virtue_pl.backbones.segmentation.sam2_weights import renamed

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
"""Predicts words; no embedding needs it."""
ADAPTER = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(?:\.(?!weight$)\w+)?(?:\.weight)?$"
)
"""peft's names of an adapter's tensors: in a file they lack the adapter's own name (`default`), in a model they have
it.
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
"""From transformers' names of SAM 2's tensors to the original's, in this order; `sam2_weights.RENAMED` is the way
there.
"""


class AdapterName(NamedTuple):
    """Whose adapter a tensor belongs to: a module by this package's name, and which of its tensors it is."""

    module: str
    kind: Literal["lora_A", "lora_B", "lora_magnitude_vector"]


def from_published(name: str) -> str | None:
    """This package's name of a tensor or module of the language model, the vision tower or the connector; None for an
    unknown one.
    """
    for pattern, prefix in FROM_PUBLISHED:
        if match := re.match(pattern, name):
            return prefix + name[match.end() :]
    return None


def to_published(name: str) -> str | None:
    """The published name (transformers 4.52) of a tensor of the language model, the vision tower or the connector; None
    for another's.
    """
    for prefix, published in TO_PUBLISHED:
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return None


def adapter_name(name: str) -> AdapterName | None:
    """What an adapter's tensor belongs to, by its published name or by that in a training run; None for what is no
    adapter's.
    """
    match = ADAPTER.match(name)
    module = None if match is None else from_published(match["module"])
    return None if match is None or module is None else AdapterName(module, match["kind"])  # type: ignore[arg-type]  # the pattern knows three


def adapter_name_here(name: str) -> AdapterName | None:
    """The same by its name in a model's `state_dict()`, where an adapter stands in its module's place."""
    match = ADAPTER.match(name)
    return None if match is None else AdapterName(match["module"], match["kind"])  # type: ignore[arg-type]  # the pattern knows three


def sam2_from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A SAM 2 checkpoint's tensors under this package's names, and under their own those that only follow objects
    through a video.
    """
    read = renamed({name: tensor for name, tensor in state.items() if not SAM2_LEFT_OUT.match(name)})
    kept = {name: tensor for name, tensor in state.items() if SAM2_LEFT_OUT.match(name)}
    return {sam2_name(name): tensor for name, tensor in read.items()}, kept


def sam2_name(name: str) -> str:
    """This package's name of a tensor of transformers' Sam2."""
    if name.startswith("prompt_encoder."):
        return PROMPT_ENCODER + name.removeprefix("prompt_encoder.")
    return SEGMENTATION + name


def sam2_to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model's tensors those of SAM 2, under the original's names. The four kinds of point become a table each."""
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
            found[original(stock)] = tensor
    return found


def original(name: str) -> str:
    """SAM 2's own name of a tensor of transformers' Sam2."""
    for pattern, replacement in SAM2_ORIGINAL:
        name = re.sub(pattern, replacement, name)
    return name


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names with the same values, bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
