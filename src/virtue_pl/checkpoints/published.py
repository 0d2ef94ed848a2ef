"""Reading the published layout.

It has config.json with `virtue_sam`, a Qwen2-VL's weights, the connector's `.pth`, SAM 2.1's `.pt`, perhaps adapters.

Without an input formatter of its own in config.json, such a folder was trained with the published one
(`PublishedFormatter`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virtue_pl.checkpoints.adapter_folder import CONFIG as ADAPTER_CONFIG
from virtue_pl.checkpoints.adapter_folder import merge, read_adapters, target_modules
from virtue_pl.checkpoints.hub import local_folder
from virtue_pl.checkpoints.keys import HEAD, PROJECT, REDUCE, from_published, to_published
from virtue_pl.checkpoints.model_card import read_license
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.sam2_release import check_sizes, find_checkpoint, read_checkpoint, read_sizes
from virtue_pl.checkpoints.tensor_files import MODEL_FILES, read_json, read_tensors
from virtue_pl.engine.weight_files import load_pickled
from virtue_pl.types import VirtueError

SETTINGS = "virtue_sam"
"""Entry of config.json on the segmentation stream."""
OURS = "virtue_pl"
"""Entry of config.json for settings that the published layout has no entry for."""
CONNECTOR_FILE = "sam2_reducer_and_vlm_layer.pth"
CONNECTOR_PARTS = ("sam2_reducer", "sam2vlm_layer")
MODEL_TYPE = "qwen2_vl"
TEMPERATURE = 0.02
PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 1280 * 28 * 28}
"""Bounds of a resized image's pixels (the paper); the image processor's own file holds others."""


def read_published(
    folder: Path, sam_checkpoint: str | Path | None = None, base: str | Path | None = None
) -> CheckpointSpec:
    """Read the release in a folder, or a training checkpoint's adapters, which are merged into their base model.

    sam_checkpoint: SAM's file or its folder, where it is not the one that `virtue_sam` names.
    base: the model under the adapters, where it is not the one that their config names.

    Raises VirtueError for another model's folder, and for tensors of unknown names.
    """
    under = folder if not (folder / ADAPTER_CONFIG).is_file() else base_folder(folder, base)
    folders = (folder, under)
    config = read_config(folders)
    language, left_out = read_language(under)
    if under != folder:
        adapters = read_adapters(folder)
        language = merge(adapters, language, target_modules(language, adapters.settings.targets), str(folder))
    connector = read_connector(find_file(folders, CONNECTOR_FILE))
    checkpoint = find_checkpoint(folder, config[SETTINGS], sam_checkpoint)
    sizes = read_sizes(folder, config[SETTINGS], checkpoint)
    segmentation, memory = read_checkpoint(checkpoint)
    reduce = connector[f"{REDUCE}weight"]
    check_sizes(segmentation, checkpoint, sizes, reduce.shape[1])
    tensors = {**language, **connector, **segmentation, "loss.log_temperature": log_temperature(config)}
    preprocessing = preprocessing_folder(folders)
    spec = published_spec(preprocessing, config, sizes, int(reduce.shape[-1]))
    return CheckpointSpec(
        preprocessing,
        spec,
        tensors,
        {**left_out, **memory},
        lambda name: to_published(name) or name,
        read_license(folder),
    )


def base_folder(folder: Path, base: str | Path | None) -> Path:
    """Return the folder of the model that adapters were trained on. Raises VirtueError where it cannot be found."""
    named = str(base or read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    for path in (Path(named), folder / named, folder.parent / named):
        if named and path.is_dir():
            return path
    try:
        return local_folder(named)
    except VirtueError as error:
        raise VirtueError(
            f"{folder / ADAPTER_CONFIG}: the base model {named!r} is no folder and cannot be fetched: give its folder"
            " by `--base`"
        ) from error


def find_file(folders: tuple[Path, Path], name: str) -> Path:
    """Return the file of that name in the first folder that has it. Raises VirtueError where neither has."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise VirtueError(
        f"{folders[0]} has no {name}, expected a release of VIRTUE: give the folder that holds its config.json and its"
        " weights"
    )


def preprocessing_folder(folders: tuple[Path, Path]) -> Path:
    """Return the first of the folders that has the files of a tokenizer and an image processor."""
    needed = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
    for folder in folders:
        if all((folder / name).is_file() for name in needed):
            return folder
    raise VirtueError(
        f"{folders[-1]} lacks one of {', '.join(needed)}, expected all three: copy them from the model that it was"
        " trained from"
    )


def read_config(folders: tuple[Path, Path]) -> dict[str, Any]:
    """Return the first config.json with a segmentation stream. Raises VirtueError for another model's."""
    configs = [read_json(folder / "config.json") for folder in folders if (folder / "config.json").is_file()]
    for config in configs:
        if config.get("model_type") != MODEL_TYPE:
            raise VirtueError(
                f"{folders[0] / 'config.json'}: model_type {config.get('model_type')!r}, expected {MODEL_TYPE!r}: it is"
                " another model's folder, name another"
            )
    for config in configs:
        if isinstance(config.get(SETTINGS), Mapping):
            if not config[SETTINGS].get("enabled", True):
                raise VirtueError(
                    f"{folders[0] / 'config.json'}: {SETTINGS}.enabled is false, expected a model with its segmentation"
                    " stream"
                )
            return config
    raise VirtueError(
        f"{folders[0] / 'config.json'} has no entry {SETTINGS!r}, expected a release of VIRTUE, not a plain Qwen2-VL"
    )


def read_language(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a Qwen2-VL's tensors under this package's names, and the head that predicts words under its own."""
    found: dict[str, Tensor] = {}
    left_out: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder, MODEL_FILES).items():
        ours = from_published(name)
        if name == HEAD:
            left_out[name] = tensor
        elif ours is None or ours.startswith("connector."):
            raise VirtueError(
                f"{folder} has an unknown tensor {name}, expected those of a Qwen2-VL: name another folder, or give"
                " adapters a folder of their own"
            )
        else:
            found[ours] = tensor
    return found, left_out


def read_connector(path: Path) -> dict[str, Tensor]:
    """Return the connector's tensors under this package's names. Raises VirtueError for another file."""
    content = load_pickled(path)
    if not isinstance(content, Mapping) or set(content) != set(CONNECTOR_PARTS):
        raise VirtueError(f"{path} has the entries {sorted(content)[:6]}, expected {' and '.join(CONNECTOR_PARTS)}")
    tensors = {f"{part}.{name}": tensor for part in CONNECTOR_PARTS for name, tensor in content[part].items()}
    if "sam2_reducer.weight" not in tensors:
        raise VirtueError(
            f"{path} lacks sam2_reducer.weight, expected the convolution and the linear layers of the connector"
        )
    return {str(from_published(name)): tensor for name, tensor in tensors.items()}


def log_temperature(config: Mapping[str, Any]) -> Tensor:
    """Return the logarithm of the temperature: the learned one that config.json states, or the paper's."""
    given = config.get(OURS, {}).get("log_temperature")
    return torch.tensor(TEMPERATURE).log() if given is None else torch.tensor(given)


def temperature(config: Mapping[str, Any]) -> float:
    """Return the temperature: the learned one that config.json states, or the paper's."""
    given = config.get(OURS, {}).get("log_temperature")
    return TEMPERATURE if given is None else math.exp(given)


def published_spec(folder: Path, config: Mapping[str, Any], sizes: Mapping[str, Any], stride: int) -> dict[str, Any]:
    """Return the published model as class_path and init_args, as a config would state it."""
    dim, canvas = sizes["embed_dim"], sizes["image_size"]
    tokens = (canvas // 16 // stride) ** 2
    points_per_side = config[SETTINGS].get("points_per_side", 3)
    encoder = part(
        "virtue_pl.backbones.Sam2PromptEncoder",
        weights=None,
        embed_dim=dim,
        image_size=canvas,
        grid_size=points_per_side,
    )
    extractor = part("virtue_pl.backbones.Sam2Backbone", weights=None, **sizes, predict_masks=False)
    language = part("virtue_pl.backbones.Qwen2VLBackbone", vlm_model="./", **PIXELS)
    pooling = part("virtue_pl.backbones.LastTokenPooling")
    formatter = part("virtue_pl.preprocessing.PublishedFormatter", num_segment_tokens=tokens, **PIXELS)
    return part(
        "virtue_pl.models.Virtue",
        prompt_encoder=part("virtue_pl.models.VisualPromptEncoder", encoder=encoder, frozen=True),
        segmentation=part("virtue_pl.models.SegmentationExtractor", backbone=extractor, frozen=True),
        connector=part("virtue_pl.models.ConvolutionConnector", stride=stride),
        fusion=part("virtue_pl.models.VLMFusionHead", backbone=language, pooling=pooling),
        loss=part("virtue_pl.losses.InfoNCELoss", temperature=temperature(config)),
        formatter=config.get(OURS, {}).get("formatter", formatter),
    )


def part(class_path: str, **init_args: Any) -> dict[str, Any]:
    """Return a part as a config states it."""
    return {"class_path": class_path, "init_args": init_args}


def connector_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the connector as its published file holds it. Raises VirtueError for another connector."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in CONNECTOR_PARTS}
    for name, tensor in tensors.items():
        if name.startswith("connector."):
            group, _, rest = (to_published(name) or name).partition(".")
            if not name.startswith((REDUCE, PROJECT)):
                raise VirtueError(
                    f"{name}: the published layout cannot hold it, expected ConvolutionConnector: leave out"
                    " `--layout published`"
                )
            found[group][rest] = tensor
    return found
