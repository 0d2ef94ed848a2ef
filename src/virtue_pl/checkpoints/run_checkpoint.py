"""Training runs: a checkpoint with its run's config.yaml as a `CheckpointSpec`, and its adapters merged if wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from virtue_pl.checkpoints.adapter_folder import Adapters, AdapterSettings, group_by_module, merge
from virtue_pl.checkpoints.folder import arguments, is_weights, rename_models, without_weights
from virtue_pl.checkpoints.keys import ADAPTER, HEAD, adapter_name_here, sam2_from_published
from virtue_pl.checkpoints.release import IN_FOLDER, CheckpointSpec
from virtue_pl.checkpoints.tensor_files import MODEL_FILES, read_tensors
from virtue_pl.engine.weight_files import load_pickled
from virtue_pl.types import VirtueError

CONFIG_FILE = "config.yaml"
START_FUNCTION = "virtue_pl.checkpoints.start_from"
"""Class path of a run's model that starts from another model (`pretrained.start_from`)."""
STARTED_FROM = "model"
"""Entry of a checkpoint's `started_from` with the spec of the model that the run started from."""
LANGUAGE_MODEL = "language_model"
"""Folder of an exported model's language model, which a run that starts from it names."""
PARTS = ("prompt_encoder", "segmentation", "fusion")
"""Parts of a model that can be frozen."""
STARTED_IN = re.compile(r"# started in (?P<folder>/.*)\n")
"""The first line of a run's config: the folder that its relative paths are relative to."""
BASE = ".base_layer."
"""Part of the name that peft gives to a weight with an adapter around it."""


def read_run(checkpoint: Path, config: Path | None = None) -> CheckpointSpec:
    """Return the model of a checkpoint (`.ckpt`), by the config of its run: `config`, or config.yaml in a folder above.

    Raises VirtueError where there is no config, or the file is no checkpoint.
    """
    content = load_pickled(checkpoint)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise VirtueError(f"{checkpoint} has no entry 'state_dict', expected the checkpoint of a run (.ckpt)")
    path = config or find_config(checkpoint)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = found["model"]
        if spec["class_path"] == START_FUNCTION:
            own = content["started_from"][STARTED_FROM]
            spec = with_settings(own, spec["init_args"], str(checkpoint))
        spec["class_path"], spec["init_args"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise VirtueError(
            f"{path} is no config of a run, expected `model` with class_path and init_args: give the run's by"
            " `--config`"
        ) from error
    return CheckpointSpec(
        checkpoint.parent,
        absolute_paths(spec, starting_folders(path, found)),
        dict(content["state_dict"]),
    )


def with_settings(spec: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a model's spec with the settings of another training, the arguments of `start_from`.

    A setting that is None leaves what the spec has. name: of the model, for messages. Raises VirtueError for a part
    that cannot be frozen.
    """
    stated = {key: settings.get(key) for key in ("loss", "train_modes", "evaluation_modes", "gradient_cache")}
    stated["optimization"] = settings.get("optimization")
    init_args = {key: value for key, value in dict(spec["init_args"]).items() if key != "alignment_steps"}
    init_args |= {key: value for key, value in stated.items() if value is not None}
    if (frozen := settings.get("frozen")) is not None:
        parts = [part for part in PARTS if part in init_args]
        for part in frozen:
            if part not in parts:
                found = ", ".join(parts) or "none: it has one part"
                raise VirtueError(f"frozen: {name} has no part {part!r}, expected some of {found}")
        for part in parts:
            init_args[part] = with_argument(init_args[part], "frozen", part in frozen)
    if (adapter := settings.get("adapter")) is not None:
        if "fusion" in init_args:
            init_args["fusion"] = with_argument(init_args["fusion"], "adapter", adapter)
        else:
            init_args["adapter"] = adapter
    return {**spec, "init_args": init_args}


def with_argument(spec: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return a part's spec with one argument changed."""
    return {**spec, "init_args": {**(spec.get("init_args") or {}), name: value}}


def model_paths(spec: Any, folder: Path) -> Any:
    """Return a spec as plain values, its language models by their paths from here instead of inside `folder`."""
    inside = {
        value
        for key, value in arguments(spec)
        if key.endswith("_model") and isinstance(value, str) and value.startswith(IN_FOLDER)
    }
    return without_weights(rename_models(spec, {name: str(folder / name) for name in inside}))


def starting_folders(config: Path, found: Mapping[str, Any]) -> list[Path]:
    """Return the folders that a run's relative paths may be relative to, the likeliest first, the current one last.

    It is the folder that the config names in its first line (`STARTED_IN`); else the one above
    `trainer.default_root_dir`, where the config still lies there; else one of those that the config lies in.
    """
    folder = config.resolve().parent
    stated = STARTED_IN.match(config.read_text(encoding="utf-8"))
    own = Path(str((found.get("trainer") or {}).get("default_root_dir") or ""))
    in_own_folder = own.parts and not own.is_absolute() and folder.parts[-len(own.parts) :] == own.parts
    return [
        *([Path(stated["folder"])] if stated else []),
        *([folder.parents[len(own.parts) - 1]] if in_own_folder else []),
        folder,
        *folder.parents,
        Path.cwd(),
    ]


def absolute_paths(spec: Any, starts: Sequence[Path]) -> Any:
    """Return the spec with the whole paths of the language models and files of weights that stand in it relative.

    What is in none of the folders `starts` stays as it is: a name of the hub, or weights that the checkpoint holds
    anyway. Raises VirtueError for the folder of a language model that is in none of them.
    """
    if isinstance(spec, Mapping):
        return {
            name: absolute_path(str(value), starts, name.endswith("_model"))
            if isinstance(value, str | Path) and (name.endswith("_model") or is_weights(name))
            else absolute_paths(value, starts)
            for name, value in spec.items()
        }
    return [absolute_paths(value, starts) for value in spec] if isinstance(spec, list) else spec


def absolute_path(path: str, starts: Sequence[Path], is_model: bool) -> str:
    """Return a path as it is found from the first of the folders `starts` that has it, see `absolute_paths`."""
    if Path(path).is_absolute():
        present = Path(path).exists()
    else:
        found = [start / path / ("config.json" if is_model else "") for start in starts]
        first = next((start / path for start, file in zip(starts, found, strict=True) if file.exists()), None)
        path, present = (path, False) if first is None else (str(first), True)
    is_path = path.count("/") > 1 or Path(path).name == LANGUAGE_MODEL  # a name of the hub has one
    if is_model and not present and is_path:
        raise VirtueError(
            f"the run's config names the language model {path}, which is not there, nor in the folder that the run was"
            f" started in ({starts[0]}): put it there, or change the path in the config and name that by `--config`"
        )
    return path


def find_config(checkpoint: Path) -> Path:
    """Return config.yaml of the run that a checkpoint lies in. Raises VirtueError where there is none."""
    for folder in checkpoint.resolve().parents[:3]:
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise VirtueError(
        f"{checkpoint} has no {CONFIG_FILE} in the folders above it, expected that of its run: give it by `--config`"
    )


def with_left_out(checkpoint: CheckpointSpec) -> CheckpointSpec:
    """Return the model with the tensors that only the published layout needs.

    They are read from the files that the run started from, as far as those still exist.
    """
    found: dict[str, Tensor] = {}
    for name, value in arguments(checkpoint.spec):
        if name == "weights" and str(value).endswith(".pt") and Path(str(value)).is_file():
            found |= sam2_from_published(load_pickled(Path(str(value))).get("model", {}))[1]
        if name == "vlm_model" and any((Path(str(value)) / file).is_file() for file in MODEL_FILES):
            found |= {key: tensor for key, tensor in read_tensors(Path(str(value)), MODEL_FILES).items() if key == HEAD}
    return replace(checkpoint, left_out={**found, **checkpoint.left_out})


def has_adapters(checkpoint: CheckpointSpec) -> bool:
    """Return whether a model has tensors of adapters."""
    return any(ADAPTER.match(name) for name in checkpoint.tensors)


def with_merged_adapters(checkpoint: CheckpointSpec) -> CheckpointSpec:
    """Return the model with every adapter merged into the weight that it is around, and no adapter in its spec.

    Raises VirtueError where there are none.
    """
    settings = [
        AdapterSettings.from_spec(value)
        for name, value in arguments(checkpoint.spec)
        if name == "adapter" and value is not None
    ]
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if ADAPTER.match(name)}
    if len(settings) != 1 or not found:
        raise VirtueError(
            f"{checkpoint.folder} has {len(found)} tensors of adapters, {len(settings)} stated in its config: leave out"
            " `--merge-adapters`"
        )
    plain = {name.replace(BASE, "."): tensor for name, tensor in checkpoint.tensors.items() if name not in found}
    around = {name.removesuffix(f"{BASE}weight") for name in checkpoint.tensors if name.endswith(f"{BASE}weight")}
    adapters = Adapters(settings[0], group_by_module(found, str(checkpoint.folder), adapter_name_here))
    return replace(
        checkpoint,
        spec=without_adapter(checkpoint.spec),
        tensors=merge(adapters, plain, around, str(checkpoint.folder)),
    )


def without_adapter(spec: Any) -> Any:
    """Return the spec without `adapter`, at any depth."""
    if isinstance(spec, Mapping):
        return {name: without_adapter(value) for name, value in spec.items() if name != "adapter"}
    return [without_adapter(value) for value in spec] if isinstance(spec, list) else spec
