"""Writing the published layout, which the published implementation and `read_published` read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from virtue_pl.checkpoints.class_paths import import_class
from virtue_pl.checkpoints.folder import (
    copy_description,
    language_model_folder,
    new_folder,
    save_tensors,
    without_weights,
)
from virtue_pl.checkpoints.keys import HEAD, LANGUAGE, VISION, sam2_to_published, to_published
from virtue_pl.checkpoints.model_card import CARD, model_card
from virtue_pl.checkpoints.published import (
    CONNECTOR_FILE,
    OURS,
    SETTINGS,
    connector_parts,
    log_temperature,
    published_spec,
)
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.sam2_release import BASE_PLUS, TRUNK_FIELDS
from virtue_pl.types import VirtueError

SAM_NAME = "sam2.1_hiera"
CLASSES = {
    "fusion.backbone": "virtue_pl.backbones.Qwen2VLBackbone",
    "segmentation.backbone": "virtue_pl.backbones.Sam2Backbone",
    "prompt_encoder.encoder": "virtue_pl.backbones.Sam2PromptEncoder",
    "connector": "virtue_pl.models.ConvolutionConnector",
}
"""Classes of the parts that the published layout can hold, by the part's path in the spec."""


def write_published(checkpoint: CheckpointSpec, target: Path, source: str, license: str | None = None) -> None:
    """Write a model in the published layout, with SAM's checkpoint in the same folder.

    Raises VirtueError for parts that the layout cannot hold.
    """
    for path, expected in CLASSES.items():
        check_class(checkpoint.spec, path, expected)
    with new_folder(target) as folder:
        language = language_model_folder(str(argument(checkpoint.spec, "fusion.backbone.vlm_model")), checkpoint.folder)
        if language is None:
            raise VirtueError(
                f"{checkpoint.folder}: vlm_model is no folder or name of the hub, expected one that describes a"
                " Qwen2-VL"
            )
        copy_description(language, folder)
        write_config(checkpoint, folder)
        save_tensors(language_tensors(checkpoint), folder / "model.safetensors")
        torch.save(
            {group: dict(tensors) for group, tensors in connector_parts(checkpoint.tensors).items()},
            folder / CONNECTOR_FILE,
        )
        memory = {name: tensor for name, tensor in checkpoint.left_out.items() if name != HEAD}
        torch.save({"model": {**sam2_to_published(checkpoint.tensors), **memory}}, folder / f"{SAM_NAME}.pt")
        write_sam_sizes(checkpoint, folder / f"{SAM_NAME}.yaml")
        count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
        (folder / CARD).write_text(
            model_card(without_weights(checkpoint.spec), source, count, license or checkpoint.license), encoding="utf-8"
        )


def argument(spec: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a spec, as "fusion.backbone"; None where it is not stated."""
    found: Any = spec
    for name in path.split("."):
        found = (found.get("init_args") or {}).get(name) if isinstance(found, Mapping) else None
    return found


def check_class(spec: Mapping[str, Any], path: str, expected: str) -> None:
    """Raise VirtueError where a part is of another class; a class may be named by any of its import paths."""
    part = argument(spec, path)
    found = part.get("class_path") if isinstance(part, Mapping) else part
    if found is None or import_class(found) is not import_class(expected):
        names = [str(name).rpartition(".")[2] for name in (found, expected)]
        raise VirtueError(
            f"{path} is {names[0]}, expected {names[1]}: the published layout holds no other; leave out `--layout"
            " published`"
        )


def language_tensors(checkpoint: CheckpointSpec) -> dict[str, Tensor]:
    """Return a Qwen2-VL's tensors under the published names, with its head if the model has it."""
    found = {
        str(to_published(name)): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith((LANGUAGE, VISION))
    }
    return found | {name: tensor for name, tensor in checkpoint.left_out.items() if name == HEAD}


def write_config(checkpoint: CheckpointSpec, folder: Path) -> None:
    """Write config.json: the language model's, with the segmentation stream's settings and this package's own."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    points_per_side = argument(checkpoint.spec, "prompt_encoder.encoder.grid_size") or 3
    before = config.get(SETTINGS) or {}
    config[SETTINGS] = {
        "feature_levels": 2,
        **before,
        "enabled": True,
        "config_path": f"./{SAM_NAME}.yaml",
        "checkpoint": f"{SAM_NAME}.pt",
        "points_per_side": points_per_side,
    }
    ours = own_settings(checkpoint, config)
    config = {name: value for name, value in config.items() if name != OURS} | ({OURS: ours} if ours else {})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def own_settings(checkpoint: CheckpointSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the published layout's defaults and have no entry in it.

    They are the input formatter and a learned temperature.
    """
    stride = argument(checkpoint.spec, "connector.stride") or 4
    plain = {name: value for name, value in config.items() if name != OURS}
    usual = published_spec(folder=checkpoint.folder, config=plain, sizes=sam_sizes(checkpoint.spec), stride=stride)[
        "init_args"
    ]["formatter"]
    formatter = argument(checkpoint.spec, "formatter") or {
        "class_path": "virtue_pl.preprocessing.VirtueFormatter",
        "init_args": {},
    }
    found: dict[str, Any] = {} if formatter == usual else {"formatter": formatter}
    temperature = checkpoint.tensors["loss.log_temperature"]
    return (
        found if torch.equal(temperature, log_temperature(plain)) else found | {"log_temperature": temperature.item()}
    )


def sam_sizes(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of the spec's SAM 2, as arguments of `Sam2Backbone`."""
    stated = argument(spec, "segmentation.backbone").get("init_args") or {}
    return {name: stated.get(name, usual) for name, usual in BASE_PLUS.items()}


def write_sam_sizes(checkpoint: CheckpointSpec, path: Path) -> None:
    """Write SAM's sizes in the field names of a SAM 2.1 configuration file."""
    sizes = sam_sizes(checkpoint.spec)
    trunk = {theirs: list_or_number(sizes[ours]) for theirs, ours in TRUNK_FIELDS.items()}
    neck = {
        "d_model": sizes["embed_dim"],
        "backbone_channel_list": [sizes["width"] * 2**stage for stage in (3, 2, 1, 0)],
        "fpn_top_down_levels": [2, 3],
    }
    model = {"image_encoder": {"trunk": trunk, "neck": neck}, "image_size": sizes["image_size"]}
    path.write_text(yaml.safe_dump({"model": model}, sort_keys=False), encoding="utf-8")


def list_or_number(value: Any) -> Any:
    """Return a tuple as a list, for YAML; any other value as it is."""
    return list(value) if isinstance(value, list | tuple) else value
