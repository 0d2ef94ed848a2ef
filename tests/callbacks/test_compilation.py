from __future__ import annotations

from typing import Any

import pytest
import torch

from fixtures.tiny_virtue import pairs, tiny_virtue
from virtue_pl.adapters.lora import LoRA
from virtue_pl.callbacks.compilation import CompileRegions
from virtue_pl.engine.gradient_cache import GradientCache
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import VirtueError

LAYERS = "fusion.backbone.model.language_model.layers"


def setup(model: Virtue, *regions: str) -> None:
    """Twice, as for fit and test."""
    nothing: Any = None
    callback = CompileRegions(regions, backend="eager")
    callback.setup(nothing, model, "fit")
    callback.setup(nothing, model, "test")


def step(model: Virtue) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model.loss(model.embed_pairs(pairs(model, 4))).loss  # type: ignore[misc]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# torch's own look at a layer's inputs
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_give_the_same_numbers_under_the_same_names() -> None:
    model = tiny_virtue(adapter=LoRA(dropout=0.0))
    model.gradient_cache = GradientCache(3)
    names = set(model.state_dict())
    plain_loss, plain = step(model)
    setup(model, LAYERS)
    layers = model.fusion.backbone.layers
    assert all(layer._compiled_call_impl is not None for layer in layers) and set(model.state_dict()) == names
    compiled_loss, compiled = step(model)
    assert compiled_loss == pytest.approx(plain_loss, rel=1e-6) and compiled.keys() == plain.keys()
    for name in plain:
        assert (compiled[name] - plain[name]).norm() <= 1e-5 * plain[name].norm() + 1e-7, name


@pytest.mark.parametrize(
    ("region", "told"),
    [
        ("fusion.trunk", "there is no fusion.trunk: fusion has .*backbone"),
        ("encoder", "there is no encoder: Virtue has .*segmentation"),
    ],
)
def test_a_region_that_is_not_there_is_refused(region: str, told: str) -> None:
    with pytest.raises(VirtueError, match=told):
        setup(tiny_virtue(), region)
