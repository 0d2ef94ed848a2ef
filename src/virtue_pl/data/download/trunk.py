"""Pretrained weights of any timm model, from the Hugging Face hub, under the name by which configs look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save

from virtue_pl.backbones.hub_models import hub_problem
from virtue_pl.types import VirtueError, replace_whole


def fetch_trunk(name: str, cache: str | Path) -> Path:
    """Return `cache`/weights/`name`.safetensors, fetched where it is not there.

    Raises VirtueError for a name that timm does not know, or has no weights for, and where the hub does not answer.
    """
    if not timm.is_model(name) or not timm.is_model_pretrained(name):
        raise VirtueError(f"--trunk: timm has no pretrained {name!r}, expected one of `timm.list_pretrained()`")
    target = Path(cache) / "weights" / f"{name.partition('.')[0]}.safetensors"
    if target.is_file():
        return target
    if problem := hub_problem():
        raise VirtueError(
            f"--trunk: {name} cannot be fetched, the hub does not answer ({problem}): fetch it where there is a"
            f" network, and put its safetensors file here as {target}"
        )
    network: Any = timm.create_model(name, pretrained=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_whole(target) as temporary:
        temporary.write_bytes(save({key: tensor.contiguous() for key, tensor in network.state_dict().items()}))
    return target
