"""A release of VIRTUE of tiny random weights, in the published layout, and the quickstart's model of the same size."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from recorded import GOLDEN
from tiny_models import VISION_MODEL, save_text_model, save_vision_model
from virtue_pl.checkpoints.folder import arguments, is_weights
from virtue_pl.checkpoints.published import part, published_spec
from virtue_pl.checkpoints.release import OWN_CLASSES, CheckpointSpec, instantiate
from virtue_pl.checkpoints.sam2_release import BASE_PLUS
from virtue_pl.checkpoints.write_published import SAM_NAME, write_published

DIM, CANVAS = 64, 128
SIZES = {
    **BASE_PLUS,
    "width": 16,
    "blocks": [1, 2, 3, 1],
    "global_attention": [4],
    "embed_dim": DIM,
    "image_size": CANVAS,
}


def release(seed: int = 0, **changes: Any) -> CheckpointSpec:
    """Random tensors around the recorded Qwen2-VL."""
    folder = GOLDEN / "qwen2_vl"
    spec = published_spec(folder, {"virtue_sam": {}}, {**SIZES, **changes}, stride=4)
    torch.manual_seed(seed)
    model = instantiate(spec, folder, (OWN_CLASSES,))
    return CheckpointSpec(folder, spec, dict(model.state_dict()), {"maskmem_tpos_enc": torch.randn(7, 1, 1, 16)})


def published(target: Path, seed: int = 0) -> Path:
    """A release's folder as it is published: SAM's checkpoint beside it, not in it."""
    write_published(release(seed), target, "random")
    for suffix in (".pt", ".yaml"):
        shutil.move(target / f"{SAM_NAME}{suffix}", target.parent / f"{SAM_NAME}{suffix}")
    return target


def quickstart_spec(folder: Path) -> dict[str, Any]:
    """timm, a BERT and the mask connector; every file of weights is in `folder`."""
    text, vision = str(save_text_model(folder / "text")), str(save_vision_model(folder / "vision.safetensors"))
    encoder = part("virtue_pl.backbones.TimmSamPromptEncoder", embed_dim=32, image_size=CANVAS, dense_hints=True)
    backbone = part(
        "virtue_pl.backbones.TimmSamBackbone",
        trunk=VISION_MODEL,
        weights=vision,
        embed_dim=32,
        image_size=CANVAS,
        dense_hints=True,
    )
    names = part("virtue_pl.backbones.ClassNames", trunk=VISION_MODEL, weights=vision, text_model=text)
    language = part(
        "virtue_pl.backbones.TimmTextBackbone",
        text_model=text,
        vision_model=VISION_MODEL,
        vision_weights=vision,
        image_size=CANVAS,
        side=2,
        frozen_layers=0,
        dropout=0.0,
        max_tokens=64,
    )
    return part(
        "virtue_pl.models.Virtue",
        prompt_encoder=part("virtue_pl.models.VisualPromptEncoder", encoder=encoder, frozen=True),
        segmentation=part("virtue_pl.models.SegmentationExtractor", backbone=backbone, frozen=True),
        connector=part("virtue_pl.models.MaskConnector", side=2, summary=True, names=names),
        fusion=part(
            "virtue_pl.models.VLMFusionHead", backbone=language, pooling=part("virtue_pl.backbones.MeanPooling")
        ),
        loss=part("virtue_pl.losses.InfoNCELoss", temperature=0.05, learn_temperature=True),
        formatter=part("virtue_pl.preprocessing.VirtueFormatter", prompt_text=True),
    )


def run_checkpoint(folder: Path, spec: dict[str, Any], seed: int = 0) -> Path:
    """A run's config.yaml and checkpoints/last.ckpt. Returns the checkpoint."""
    torch.manual_seed(seed)
    model = instantiate(spec, folder, (OWN_CLASSES,))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0, "model": spec}))
    state = {
        name: tensor + torch.randn_like(tensor) * 0.01 if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save({"state_dict": state, "global_step": 3}, folder / "checkpoints" / "last.ckpt")
    return folder / "checkpoints" / "last.ckpt"


def names_weights(spec: Any) -> list[str]:
    """The files of weights that a spec names."""
    return [str(value) for name, value in arguments(spec) if is_weights(name) and value is not None]
