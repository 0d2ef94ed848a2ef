"""Adapters of a training checkpoint in peft's layout (LoRA, DoRA), and how they are merged into their model's weights.

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
INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the model's own weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ,
LoRA-GA ...) take their start out of them, so that the adapters belong to what is left.
"""
READ = ("peft_type", "r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "init_lora_weights")
"""Settings of peft that are read here."""
WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
    "lora_dropout",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
)
"""Settings of peft that a merged weight does not depend on, or not without another setting that is refused."""
NOT_USED: tuple[Any, ...] = (None, False, "none", [], {})
"""Values of all other settings with which they change nothing."""


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of adapters that a merged weight depends on. targets: names of the modules with an adapter.

    Example:
        >>> AdapterSettings(rank=8, alpha=16, dora=False, targets=("q_proj",)).scale
        2.0
    """

    rank: int
    alpha: float
    dora: bool
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """Return the factor of `B @ A` in a merged weight."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @property
    def kinds(self) -> frozenset[str]:
        """Return the names of the tensors that each adapter has."""
        return frozenset({"lora_A", "lora_B", "lora_magnitude_vector"} if self.dora else {"lora_A", "lora_B"})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> AdapterSettings:
        """Read peft's `adapter_config.json`.

        Raises VirtueError naming a setting that cannot be merged here, known or not.
        """
        found = unsupported_setting(config)
        if found is not None:
            setting, expected = found
            raise VirtueError(
                f"{name}: {setting} is {config.get(setting)!r}, expected {expected}: merge the adapters with peft first"
            )
        targets = config["target_modules"]
        return cls(
            config["r"],
            config["lora_alpha"],
            bool(config.get("use_dora")),
            tuple(targets),
            bool(config.get("use_rslora")),
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> AdapterSettings:
        """Read `LoRA` as a config states it. Raises VirtueError where it leaves a setting to a default."""
        stated = spec.get("init_args") or {}
        missing = {"rank", "alpha", "dora", "targets"} - stated.keys()
        if missing:
            raise VirtueError(
                f"adapter: {spec.get('class_path')} does not state {min(missing)}, expected the run's own config.yaml,"
                " which states it"
            )
        return cls(stated["rank"], stated["alpha"], stated["dora"], tuple(stated["targets"]))


def unsupported_setting(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first setting of `adapter_config.json` that cannot be merged here, and what is expected instead."""
    if config.get("peft_type", "LORA") != "LORA":
        return "peft_type", "LORA"
    if config.get("init_lora_weights", True) not in INITIALISATIONS:
        allowed = ", ".join(map(repr, INITIALISATIONS))
        return "init_lora_weights", f"one that leaves the model's own weights as they are ({allowed})"
    for setting, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(config.get(setting), kind) or (setting == "r" and config["r"] < 1):
            return setting, "a number, of a rank at least 1"
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        return "target_modules", "a list of the modules' last names"
    others = sorted(config.keys() - {*READ, *WITHOUT_EFFECT})
    return next(((setting, "a LoRA or DoRA without it") for setting in others if config[setting] not in NOT_USED), None)


@dataclass(frozen=True)
class Adapters:
    """A checkpoint's adapters: for each module, by this package's name, its tensors by kind.

    Example:
        >>> settings = AdapterSettings(rank=1, alpha=1, dora=False, targets=("q_proj",))
        >>> tensors = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(3, 1)}
        >>> list(Adapters(settings, {"layers.0.q_proj": tensors}).modules)
        ['layers.0.q_proj']
    """

    settings: AdapterSettings
    modules: dict[str, dict[str, Tensor]]


def read_adapters(folder: Path) -> Adapters:
    """Return the adapters in a folder. Raises VirtueError for a tensor of an unknown name."""
    settings = AdapterSettings.from_config(read_json(folder / CONFIG), str(folder / CONFIG))
    return Adapters(settings, group_by_module(read_tensors(folder, ADAPTER_FILES), str(folder)))


def group_by_module(
    tensors: Mapping[str, Tensor], name: str, split: Callable[[str], AdapterName | None] = adapter_name
) -> dict[str, dict[str, Tensor]]:
    """Return adapters' tensors by module and by kind. Raises VirtueError for an unknown name.

    split: returns the module and the kind of a tensor's name, or None for an unknown one.
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
    """Return the tensors with every adapter merged into its module's weight.

    Raises VirtueError unless exactly the modules `wanted` have one.
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
        merged[f"{module}.weight"] = merge_weight(
            weight.float(), {kind: part.float() for kind, part in parts.items()}, adapters.settings.scale
        ).to(weight.dtype)
    return merged


def target_modules(tensors: Mapping[str, Tensor], targets: tuple[str, ...]) -> set[str]:
    """Return the modules of the language model and of the vision tower whose name ends in a target, as peft matches."""
    matrices = {
        key.removesuffix(".weight")
        for key, tensor in tensors.items()
        if key.startswith((LANGUAGE, VISION)) and tensor.ndim == 2
    }
    return {name for name in matrices if any(name.endswith(f".{target}") for target in targets)}


def check_parts(module: str, parts: Mapping[str, Tensor], weight: Tensor, settings: AdapterSettings, name: str) -> None:
    """Raise VirtueError where an adapter lacks a tensor or has another size than its settings and its module."""
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


def merge_weight(
    weight: Float[Tensor, "rows columns"], parts: Mapping[str, Tensor], scale: float
) -> Float[Tensor, "rows columns"]:
    """Return the weight that a module with this adapter multiplies by.

    The rows' lengths are constants for the gradient, as in DoRA.
    """
    changed = weight + scale * (parts["lora_B"] @ parts["lora_A"])
    if "lora_magnitude_vector" not in parts:
        return changed
    lengths = torch.linalg.norm(changed, dim=1).detach()
    return (parts["lora_magnitude_vector"] / lengths)[:, None] * changed
