"""A frozen timm backbone that turns uint8 images into a pyramid of features."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from virtue_pl.engine.weight_files import load_safetensors
from virtue_pl.types import VirtueError


class TimmTrunk(nn.Module):
    """timm's `features_only` network, always frozen and in eval mode.

    Args:
        name: any timm model that gives feature maps.
        weights: a safetensors file with timm's names for the whole model, or None for random weights.
        out_indices: timm's indices of the feature maps to return, finest first.

    Example:
        >>> trunk = TimmTrunk("tf_efficientnet_lite0", None, out_indices=(3, 4))
        >>> [tuple(level.shape) for level in trunk(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))]
        [(1, 112, 4, 4), (1, 320, 2, 2)]
    """

    network: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | Path | None, out_indices: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.network = timm.create_model(name, pretrained=False, features_only=True, out_indices=out_indices)
        if weights is not None:
            load_trunk_weights(self.network, weights)
        self.channels: tuple[int, ...] = tuple(self.network.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.network.feature_info.reduction())
        config = timm.get_pretrained_cfg(name)
        mean, std = (config.mean, config.std) if config is not None else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.requires_grad_(False).to(memory_format=torch.channels_last).eval()

    def train(self, mode: bool = True) -> TimmTrunk:
        """Return the network unchanged: it stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, pixels: Shaped[Tensor, "images 3 height width"]
    ) -> tuple[Float[Tensor, "images channels rows columns"], ...]:
        """Return the feature maps of `out_indices`. pixels: in [0, 255]; they are normalised here."""
        normalised = (pixels.to(self.mean.dtype) - self.mean) / self.std
        weights = next(self.network.parameters())
        maps = self.network(normalised.to(weights.dtype).contiguous(memory_format=torch.channels_last))
        return tuple(feature.contiguous() for feature in maps)


def load_trunk_weights(network: nn.Module, path: str | Path) -> None:
    """Load a `features_only` network from the file of the whole model, whose classifier is ignored.

    Raises VirtueError where the file, or a tensor in it, is missing.
    """
    if not Path(path).is_file():
        raise VirtueError(
            f"backbone weights {path} are not there: run `virtue-pl fetch weights` (with --trunk NAME for another than"
            " tf_efficientnet_lite1), or set `weights: null` for random ones"
        )
    state = load_safetensors(path)
    missing = [name for name in network.state_dict() if name not in state]
    if missing:
        raise VirtueError(
            f"{path} lacks {len(missing)} tensors of the backbone, e.g. {missing[0]}: it belongs to another model,"
            " change `weights` or `name`"
        )
    network.load_state_dict({name: state[name] for name in network.state_dict()})


def feature_levels(trunk: str, finest_stride: int) -> tuple[int, ...]:
    """Return timm's indices of the trunk's feature maps whose stride is at least `finest_stride`.

    Raises VirtueError for an unknown trunk.
    """
    if not timm.is_model(trunk):
        raise VirtueError(f"trunk: timm has no model {trunk!r}, expected one of `timm.list_models()`")
    return tuple(index for index, stride in level_strides(trunk) if stride >= finest_stride)


@cache
def level_strides(trunk: str) -> tuple[tuple[int, int], ...]:
    """Return timm's index and the stride of each of the trunk's feature maps; the trunk is built once a process."""
    with torch.device("meta"):
        info: Any = timm.create_model(trunk, features_only=True).feature_info
    return tuple(zip(info.out_indices, info.reduction(), strict=True))
