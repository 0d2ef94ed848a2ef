"""This package's own layout of an exported model.

virtue.yaml         {format, model: {class_path, init_args}}; a value "./NAME" is a folder beside it
model.safetensors   every tensor of the model's `state_dict()`
left_out.safetensors  tensors that only the published layout needs, if there are any
language_model/     config and tokenizer, no weights
README.md           the model card
modules.json, config_sentence_transformers.json  by which sentence-transformers loads the folder
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from virtue_pl.checkpoints.hub import DESCRIPTION, local_folder
from virtue_pl.checkpoints.model_card import CARD, model_card, read_license
from virtue_pl.checkpoints.release import IN_FOLDER, CheckpointSpec
from virtue_pl.checkpoints.tensor_files import read_file
from virtue_pl.types import VirtueError, naming

SPEC_FILE, MODEL_FILE, LEFT_OUT_FILE = "virtue.yaml", "model.safetensors", "left_out.safetensors"
FORMAT = 1
MODULES_FILE, SENTENCE_TRANSFORMERS_FILE = "modules.json", "config_sentence_transformers.json"
SENTENCE_TRANSFORMERS = {
    MODULES_FILE: [{"idx": 0, "name": "0", "path": "", "type": "virtue_pl.integrations.SentenceTransformerModule"}],
    SENTENCE_TRANSFORMERS_FILE: {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}
"""Contents of the files by which sentence-transformers finds the modules of a folder, and their settings."""
NOT_DESCRIPTION = ("*.index.json", "adapter_config.json", "virtue.yaml", "README.md", "LICENSE*")


def read_folder(folder: Path) -> CheckpointSpec:
    """Return the model of an exported folder.

    Raises VirtueError for another format, and where its spec names weights outside of its own file.
    """
    try:
        content = yaml.safe_load((folder / SPEC_FILE).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise VirtueError(f"{folder / SPEC_FILE} is not YAML: {' '.join(str(error).split())[:160]}") from error
    if (
        not isinstance(content, Mapping)
        or content.get("format") != FORMAT
        or not isinstance(content.get("model"), Mapping)
    ):
        raise VirtueError(
            f"{folder / SPEC_FILE}: expected `format: {FORMAT}` and `model` with class_path and init_args; export it"
            " with this version"
        )
    for name, value in arguments(content["model"]):
        if is_weights(name) and value is not None:
            raise VirtueError(
                f"{folder / SPEC_FILE}: {name} is {value!r}, expected null: an exported model's tensors are in"
                f" {MODEL_FILE}"
            )
    left_out = read_file(folder / LEFT_OUT_FILE) if (folder / LEFT_OUT_FILE).is_file() else {}
    return CheckpointSpec(
        folder, content["model"], read_file(folder / MODEL_FILE), left_out, license=read_license(folder)
    )


def write_folder(checkpoint: CheckpointSpec, target: Path, source: str, license: str | None = None) -> None:
    """Write a model in this package's layout; `target` is complete or absent."""
    with new_folder(target) as folder:
        write_files(checkpoint, folder, source, license)
        for name, content in SENTENCE_TRANSFORMERS.items():
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_files(checkpoint: CheckpointSpec, folder: Path, source: str, license: str | None = None) -> None:
    """Write a model's description, tensors and card into a folder; without what sentence-transformers reads."""
    spec = copy_language_models(without_weights(checkpoint.spec), checkpoint.folder, folder)
    (folder / SPEC_FILE).write_text(
        yaml.safe_dump({"format": FORMAT, "model": spec}, sort_keys=False, width=140), encoding="utf-8"
    )
    save_tensors(checkpoint.tensors, folder / MODEL_FILE)
    if checkpoint.left_out:
        save_tensors(checkpoint.left_out, folder / LEFT_OUT_FILE)
    count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    (folder / CARD).write_text(model_card(spec, source, count, license or checkpoint.license), encoding="utf-8")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that is renamed to it if all goes well.

    Raises VirtueError where `target` is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise VirtueError(f"{target} is there and not empty, expected a new folder: remove it, or give another `--out`")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, each with memory of its own, as that format needs it."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with naming(path):
        save_file(own, path, {"format": "pt"})


def arguments(spec: Any) -> Iterator[tuple[str, Any]]:
    """Yield every named value of a spec, at any depth."""
    if isinstance(spec, Mapping):
        for name, value in spec.items():
            yield str(name), value
            yield from arguments(value)
    elif isinstance(spec, list | tuple):
        for value in spec:
            yield from arguments(value)


def is_weights(name: str) -> bool:
    """Return whether an argument names a file of weights, by this package's convention."""
    return name == "weights" or name.endswith("_weights")


def without_weights(spec: Any) -> Any:
    """Return the spec without files of weights, as plain values that YAML can hold."""
    if isinstance(spec, Mapping):
        emptied = {str(name): without_weights(value) for name, value in spec.items()}
        return {
            name: None if is_weights(name) else "" if name == "weights_prefix" else value
            for name, value in emptied.items()
        }
    if isinstance(spec, list | tuple):
        return [without_weights(value) for value in spec]
    return str(spec) if isinstance(spec, Path) else spec


def copy_language_models(spec: Any, origin: Path, target: Path) -> Any:
    """Copy every language model that a spec names (`..._model`) into `target`, without its weights.

    Returns the spec with the copies' names.
    """
    copies: dict[str, str] = {}
    for name, value in arguments(spec):
        if (
            name.endswith("_model")
            and isinstance(value, str)
            and value not in copies
            and (found := language_model_folder(value, origin)) is not None
        ):
            copies[value] = f"{IN_FOLDER}language_model" + (f"_{len(copies) + 1}" if copies else "")
            copy_description(found, target / copies[value])
    return rename_models(spec, copies)


def language_model_folder(value: str, origin: Path) -> Path | None:
    """Return a language model's folder by its path, its path inside `origin` or its hub name.

    None for a name of another kind (timm's).
    """
    if value.startswith(IN_FOLDER) and (origin / value / "config.json").is_file():
        return origin / value
    return local_folder(value, DESCRIPTION) if Path(value).is_dir() or "/" in value else None


def copy_description(source: Path, target: Path) -> None:
    """Copy a language model's config, tokenizer and image processor."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        chosen = any(fnmatch(path.name, pattern) for pattern in DESCRIPTION) and not any(
            fnmatch(path.name, pattern) for pattern in NOT_DESCRIPTION
        )
        if path.is_file() and chosen:
            shutil.copyfile(path, target / path.name)


def rename_models(spec: Any, new_names: Mapping[str, str]) -> Any:
    """Return the spec with the language models (`..._model`) under new names, by the old ones."""
    if isinstance(spec, Mapping):
        return {
            name: (
                new_names.get(value, value)
                if name.endswith("_model") and isinstance(value, str)
                else rename_models(value, new_names)
            )
            for name, value in spec.items()
        }
    return [rename_models(value, new_names) for value in spec] if isinstance(spec, list) else spec
