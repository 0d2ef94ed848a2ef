"""A training run's checkpoint with its config.yaml as a release, its adapters merged where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from virtue_pl.checkpoints.adapter_folder import Adapters, AdapterSettings, by_module, merge
from virtue_pl.checkpoints.folder import arguments, replaced
from virtue_pl.checkpoints.keys import ADAPTER, HEAD, adapter_name_here, sam2_from_published
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.tensor_files import MODEL_FILES, load_pickled, read_tensors
from virtue_pl.types import VirtueError

CONFIG_FILE = "config.yaml"
BASE = ".base_layer."
"""What peft puts into the name of a weight with an adapter around it."""


def read_run(checkpoint: Path, config: Path | None = None) -> CheckpointSpec:
    """What a checkpoint (`.ckpt`) holds, by the config of its run, which lies in a folder above it unless given.

    Raises VirtueError where there is no config, or the file is no checkpoint.
    """
    content = load_pickled(checkpoint)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise VirtueError(f"{checkpoint} has no entry 'state_dict', expected the checkpoint of a run (.ckpt)")
    path = config or find_config(checkpoint)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = found["model"]
        spec["class_path"], spec["init_args"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise VirtueError(
            f"{path} is no config of a run, expected `model` with class_path and init_args: give the run's by"
            " `--config`"
        ) from error
    return CheckpointSpec(
        checkpoint.parent, replaced(spec, moved(spec, started_in(path, found))), dict(content["state_dict"])
    )


def started_in(config: Path, found: Mapping[str, Any]) -> Path:
    """The folder that a run's relative paths begin in: the one above its own as its config names it; or else the
    current one.
    """
    own = Path(str((found.get("trainer") or {}).get("default_root_dir") or ""))
    folder = config.resolve().parent
    known = own.parts and not own.is_absolute() and folder.parts[-len(own.parts) :] == own.parts
    return folder.parents[len(own.parts) - 1] if known else Path()


def moved(spec: Any, start: Path) -> dict[str, str]:
    """Where the folders of language models are that the spec names and that are not to be found from here. Raises
    VirtueError for one that is nowhere.
    """
    named = {value for name, value in arguments(spec) if name.endswith("_model") and isinstance(value, str)}
    away = sorted(name for name in named if not Path(name).exists())
    for name in away:
        if name.count("/") > 1 and not (start / name).is_dir():  # a name of the hub has one
            raise VirtueError(
                f"the run's config names the language model {name}, which is not there: run this in the folder that the"
                " run was started in"
            )
    return {name: str(start / name) for name in away if (start / name).is_dir()}


def find_config(checkpoint: Path) -> Path:
    for folder in checkpoint.resolve().parents[:3]:
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    raise VirtueError(
        f"{checkpoint} has no {CONFIG_FILE} in the folders above it, expected that of its run: give it by `--config`"
    )


def with_left_out(release: CheckpointSpec) -> CheckpointSpec:
    """The release with what only the published layout needs, as far as the files that the run started from are still
    there.
    """
    found: dict[str, Tensor] = {}
    for name, value in arguments(release.spec):
        if name == "weights" and str(value).endswith(".pt") and Path(str(value)).is_file():
            found |= sam2_from_published(load_pickled(Path(str(value))).get("model", {}))[1]
        if name == "vlm_model" and any((Path(str(value)) / file).is_file() for file in MODEL_FILES):
            found |= {key: tensor for key, tensor in read_tensors(Path(str(value)), MODEL_FILES).items() if key == HEAD}
    return replace(release, left_out={**found, **release.left_out})


def has_adapters(release: CheckpointSpec) -> bool:
    return any(ADAPTER.match(name) for name in release.tensors)


def with_merged_adapters(release: CheckpointSpec) -> CheckpointSpec:
    """The release with every adapter in the weight that it is around, and none stated any more. Raises VirtueError
    where there are none.
    """
    settings = [
        AdapterSettings.from_spec(value)
        for name, value in arguments(release.spec)
        if name == "adapter" and value is not None
    ]
    found = {name: tensor for name, tensor in release.tensors.items() if ADAPTER.match(name)}
    if len(settings) != 1 or not found:
        raise VirtueError(
            f"{release.folder} has {len(found)} tensors of adapters, {len(settings)} stated in its config: leave out"
            " `--merge-adapters`"
        )
    plain = {name.replace(BASE, "."): tensor for name, tensor in release.tensors.items() if name not in found}
    around = {name.removesuffix(f"{BASE}weight") for name in release.tensors if name.endswith(f"{BASE}weight")}
    adapters = Adapters(settings[0], by_module(found, str(release.folder), adapter_name_here))
    return replace(
        release, spec=without_adapter(release.spec), tensors=merge(adapters, plain, around, str(release.folder))
    )


def without_adapter(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {name: without_adapter(value) for name, value in spec.items() if name != "adapter"}
    return [without_adapter(value) for value in spec] if isinstance(spec, list) else spec
