"""Adapters of a training checkpoint in peft's layout (LoRA, DoRA), merged into the weights that they were trained on.

LoRA (arXiv 2106.09685) adds `scale * B @ A` to a weight. DoRA (arXiv 2402.09353) also gives each of its rows a learned
length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.checkpoints.keys import LANGUAGE, VISION, AdapterName, adapter_name
from virtue_pl.checkpoints.tensor_files import ADAPTER_FILES, read_json, read_tensors
from virtue_pl.types import VirtueError

CONFIG = "adapter_config.json"
UNSUPPORTED = (
    "modules_to_save",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "exclude_modules",
    "trainable_token_indices",
)
"""Settings of peft that change what a merged weight is, and that no published checkpoint has."""


@dataclass(frozen=True)
class AdapterSettings:
    """What a merged weight depends on beside the tensors. targets: names of the modules with an adapter."""

    rank: int
    alpha: float
    dora: bool
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"lora_A", "lora_B", "lora_magnitude_vector"} if self.dora else {"lora_A", "lora_B"})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> AdapterSettings:
        """Of peft's `adapter_config.json`. Raises VirtueError for settings that are not merged here."""
        used = [key for key in UNSUPPORTED if config.get(key)]
        if config.get("peft_type", "LORA") != "LORA" or used or config.get("bias", "none") != "none":
            found = (
                f"{used[0]} {config[used[0]]!r}"
                if used
                else f"peft_type {config.get('peft_type')}, bias {config.get('bias')}"
            )
            raise VirtueError(
                f"{name}: {found}, expected a LoRA or DoRA without it: merge the adapters with peft first"
            )
        targets = config.get("target_modules")
        if not isinstance(targets, list) or not {"r", "lora_alpha"} <= config.keys():
            raise VirtueError(f"{name}: expected r, lora_alpha and a list target_modules, found {sorted(config)[:8]}")
        return cls(
            config["r"],
            config["lora_alpha"],
            bool(config.get("use_dora")),
            tuple(targets),
            bool(config.get("use_rslora")),
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> AdapterSettings:
        """Of `LoRA` as a config states it."""
        stated = spec.get("init_args") or {}
        missing = {"rank", "alpha", "dora", "targets"} - stated.keys()
        if missing:
            raise VirtueError(
                f"adapter: {spec.get('class_path')} does not state {min(missing)}, expected the run's own config.yaml,"
                " which states it"
            )
        return cls(stated["rank"], stated["alpha"], stated["dora"], tuple(stated["targets"]))


@dataclass(frozen=True)
class Adapters:
    """A checkpoint's adapters: for each module, by this package's name, its tensors by kind."""

    settings: AdapterSettings
    modules: dict[str, dict[str, Tensor]]


def read_adapters(folder: Path) -> Adapters:
    """The adapters of a folder. Raises VirtueError for a tensor of an unknown name."""
    settings = AdapterSettings.from_config(read_json(folder / CONFIG), str(folder / CONFIG))
    return Adapters(settings, by_module(read_tensors(folder, ADAPTER_FILES), str(folder)))


def by_module(
    tensors: Mapping[str, Tensor], name: str, split: Callable[[str], AdapterName | None] = adapter_name
) -> dict[str, dict[str, Tensor]]:
    """Adapters' tensors, by the module that they belong to and by kind. split: from a tensor's name to both; None for
    an unknown one.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = split(key)
        if found is None:
            raise VirtueError(
                f"{name} has an unknown tensor {key}, expected lora_A, lora_B or lora_magnitude_vector of modules of a"
                " Qwen2-VL"
            )
        modules.setdefault(found.module, {})[found.kind] = tensor
    return modules


def merge(adapters: Adapters, tensors: Mapping[str, Tensor], wanted: Set[str], name: str) -> dict[str, Tensor]:
    """The tensors with every adapter in its module's weight; all modules `wanted` must have one. Raises VirtueError for
    one too many or too few.
    """
    for module in sorted(wanted ^ adapters.modules.keys()):
        problem = "lacks the adapter of" if module in wanted else "has an adapter of"
        raise VirtueError(
            f"{name} {problem} {module}, expected one for each module that its targets"
            f" ({', '.join(adapters.settings.targets)}) name"
        )
    merged = dict(tensors)
    for module, parts in adapters.modules.items():
        check_parts(module, parts, tensors[f"{module}.weight"], adapters.settings, name)
        weight = tensors[f"{module}.weight"]
        merged[f"{module}.weight"] = adapted(
            weight.float(), {kind: part.float() for kind, part in parts.items()}, adapters.settings.scale
        ).to(weight.dtype)
    return merged


def targeted(tensors: Mapping[str, Tensor], targets: tuple[str, ...]) -> set[str]:
    """The matrices of the language model and of the vision tower whose name ends in a target, as peft matches."""
    matrices = {
        key.removesuffix(".weight")
        for key, tensor in tensors.items()
        if key.startswith((LANGUAGE, VISION)) and tensor.ndim == 2
    }
    return {name for name in matrices if any(name.endswith(f".{target}") for target in targets)}


def check_parts(module: str, parts: Mapping[str, Tensor], weight: Tensor, settings: AdapterSettings, name: str) -> None:
    """Raises VirtueError where an adapter lacks a tensor or is of another size than its settings and its module."""
    if parts.keys() != settings.kinds:
        raise VirtueError(
            f"{name}: {module} has {', '.join(sorted(parts))}, expected {', '.join(sorted(settings.kinds))} (use_dora:"
            f" {settings.dora})"
        )
    rows, columns = weight.shape
    expected = {"lora_A": (settings.rank, columns), "lora_B": (rows, settings.rank), "lora_magnitude_vector": (rows,)}
    for kind, part in parts.items():
        if tuple(part.shape) != expected[kind]:
            raise VirtueError(
                f"{name}: {kind} of {module} is {list(part.shape)}, expected {list(expected[kind])}: it was trained on"
                " another model"
            )


def adapted(
    weight: Float[Tensor, "rows columns"], parts: Mapping[str, Tensor], scale: float
) -> Float[Tensor, "rows columns"]:
    """The weight that a module with this adapter multiplies by. The rows' lengths are constants to the gradient, as
    DoRA has it.
    """
    changed = weight + scale * (parts["lora_B"] @ parts["lora_A"])
    if "lora_magnitude_vector" not in parts:
        return changed
    lengths = torch.linalg.norm(changed, dim=1).detach()
    return (parts["lora_magnitude_vector"] / lengths)[:, None] * changed
