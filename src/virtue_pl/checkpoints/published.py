"""The published layout: config.json with `virtue_sam`, a Qwen2-VL's weights, the connector's `.pth`, SAM 2.1's `.pt`,
perhaps adapters.

Without an input formatter of its own in config.json, such a folder was trained with the published one
(`PublishedFormatter`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virtue_pl.checkpoints.adapter_folder import CONFIG as ADAPTER_CONFIG
from virtue_pl.checkpoints.adapter_folder import merge, read_adapters, targeted
from virtue_pl.checkpoints.hub import local_folder
from virtue_pl.checkpoints.keys import HEAD, PROJECT, REDUCE, from_published, to_published
from virtue_pl.checkpoints.model_card import read_license
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.sam2_release import check_sizes, find_checkpoint, read_checkpoint, read_sizes
from virtue_pl.checkpoints.tensor_files import MODEL_FILES, load_pickled, read_json, read_tensors
from virtue_pl.types import VirtueError

SETTINGS = "virtue_sam"
"""config.json's entry on the segmentation stream."""
OURS = "virtue_pl"
"""config.json's entry on what the published layout has no place for."""
CONNECTOR_FILE = "sam2_reducer_and_vlm_layer.pth"
CONNECTOR_PARTS = ("sam2_reducer", "sam2vlm_layer")
MODEL_TYPE = "qwen2_vl"
TEMPERATURE = 0.02
PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 1280 * 28 * 28}
"""Of an image after it is resized (the paper); the image processor's own file holds other bounds."""
SAM2 = "virtue_pl.backbones.segmentation.sam2."


def read_published(
    folder: Path, sam_checkpoint: str | Path | None = None, base: str | Path | None = None
) -> CheckpointSpec:
    """The release in a folder, or a training checkpoint's adapters merged into its base model.

    sam_checkpoint: SAM's file or its folder, where it is not what `virtue_sam` names. base: the model under the
    adapters, where it
    is not what their config names.
    Raises VirtueError for another model's folder, and for tensors of unknown names.
    """
    under = folder if not (folder / ADAPTER_CONFIG).is_file() else base_folder(folder, base)
    places = (folder, under)
    config = read_config(places)
    language, left_out = read_language(under)
    if under != folder:
        adapters = read_adapters(folder)
        language = merge(adapters, language, targeted(language, adapters.settings.targets), str(folder))
    connector = read_connector(first_with(places, CONNECTOR_FILE))
    checkpoint = find_checkpoint(folder, config[SETTINGS], sam_checkpoint)
    sizes = read_sizes(folder, config[SETTINGS], checkpoint)
    segmentation, memory = read_checkpoint(checkpoint)
    reduce = connector[f"{REDUCE}weight"]
    check_sizes(segmentation, checkpoint, sizes, reduce.shape[1])
    tensors = {**language, **connector, **segmentation, "loss.log_temperature": log_temperature(config)}
    described = described_in(places)
    spec = published_spec(described, config, sizes, int(reduce.shape[-1]))
    return CheckpointSpec(
        described, spec, tensors, {**left_out, **memory}, lambda name: to_published(name) or name, read_license(folder)
    )


def base_folder(folder: Path, base: str | Path | None) -> Path:
    """The folder of the model that adapters were trained on. Raises VirtueError where it is not to be had."""
    named = str(base or read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    for place in (Path(named), folder / named, folder.parent / named):
        if named and place.is_dir():
            return place
    try:
        return local_folder(named)
    except VirtueError as error:
        raise VirtueError(
            f"{folder / ADAPTER_CONFIG}: the base model {named!r} is no folder and cannot be fetched: give its folder"
            " by `--base`"
        ) from error


def first_with(places: tuple[Path, Path], name: str) -> Path:
    for place in places:
        if (place / name).is_file():
            return place / name
    raise VirtueError(
        f"{places[0]} has no {name}, expected a release of VIRTUE: give the folder that holds its config.json and its"
        " weights"
    )


def described_in(places: tuple[Path, Path]) -> Path:
    """The first of the folders that says how texts and images become tokens."""
    needed = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
    for place in places:
        if all((place / name).is_file() for name in needed):
            return place
    raise VirtueError(
        f"{places[-1]} lacks one of {', '.join(needed)}, expected all three: copy them from the model that it was"
        " trained from"
    )


def read_config(places: tuple[Path, Path]) -> dict[str, Any]:
    """config.json, of the first place that knows of a segmentation stream. Raises VirtueError for another model's."""
    configs = [read_json(place / "config.json") for place in places if (place / "config.json").is_file()]
    for config in configs:
        if config.get("model_type") != MODEL_TYPE:
            raise VirtueError(
                f"{places[0] / 'config.json'}: model_type {config.get('model_type')!r}, expected {MODEL_TYPE!r}: it is"
                " another model's folder, name another"
            )
    for config in configs:
        if isinstance(config.get(SETTINGS), Mapping):
            if not config[SETTINGS].get("enabled", True):
                raise VirtueError(
                    f"{places[0] / 'config.json'}: {SETTINGS}.enabled is false, expected a model with its segmentation"
                    " stream"
                )
            return config
    raise VirtueError(
        f"{places[0] / 'config.json'} has no entry {SETTINGS!r}, expected a release of VIRTUE, not a plain Qwen2-VL"
    )


def read_language(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A Qwen2-VL's tensors under this package's names, and the head that predicts words under its own."""
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
    """The connector's tensors under this package's names."""
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
    given = config.get(OURS, {}).get("log_temperature")
    return torch.tensor(TEMPERATURE).log() if given is None else torch.tensor(given)


def published_spec(folder: Path, config: Mapping[str, Any], sizes: Mapping[str, Any], stride: int) -> dict[str, Any]:
    """The published model as a config would state it."""
    dim, canvas = sizes["embed_dim"], sizes["image_size"]
    tokens = (canvas // 16 // stride) ** 2
    side = config[SETTINGS].get("points_per_side", 3)
    encoder = part(f"{SAM2}Sam2PromptEncoder", weights=None, embed_dim=dim, image_size=canvas, grid_side=side)
    extractor = part(f"{SAM2}Sam2Backbone", weights=None, **sizes, predict_masks=False)
    language = part("virtue_pl.backbones.Qwen2VLBackbone", vlm_model="./", **PIXELS)
    pooling = part("virtue_pl.backbones.LastTokenPooling")
    formatter = part("virtue_pl.preprocessing.PublishedFormatter", num_segment_tokens=tokens, **PIXELS)
    return part(
        "virtue_pl.models.Virtue",
        prompt_encoder=part("virtue_pl.models.VisualPromptEncoder", encoder=encoder, frozen=True),
        segmentation=part("virtue_pl.models.SegmentationExtractor", backbone=extractor, frozen=True),
        connector=part("virtue_pl.models.ConvolutionConnector", stride=stride),
        fusion=part("virtue_pl.models.VLMFusionHead", backbone=language, pooling=pooling),
        loss=part("virtue_pl.losses.InfoNCELoss", temperature=TEMPERATURE),
        formatter=config.get(OURS, {}).get("formatter", formatter),
    )


def part(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def connector_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The connector as its file holds it. Raises VirtueError for another connector."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in CONNECTOR_PARTS}
    for name, tensor in tensors.items():
        if name.startswith("connector."):
            group, _, rest = (to_published(name) or name).partition(".")
            if not name.startswith((REDUCE, PROJECT)):
                raise VirtueError(
                    f"{name}: the published layout has no place for it, expected ConvolutionConnector: leave out"
                    " `--layout published`"
                )
            found[group][rest] = tensor
    return found
