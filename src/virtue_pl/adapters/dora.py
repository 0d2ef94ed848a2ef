"""DoRA (arXiv 2402.09353) as one product: half of peft's work in training, and no matrix of the weight's size beside
the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from virtue_pl.adapters.dropout import QuickDropout


class FusedDora(DoraLinearVariant):
    """A map's output, stretched by m / |W + s B A|, plus the update's: y = f (W x + s B A drop(x)) + bias, f the
    stretch of each output.

    Without dropout these are peft's numbers. With it, peft reads W twice, and its dropout also reaches W where f is not
    1:
    y = W x + (f - 1) W drop(x) + f s B A drop(x); here it reaches the update alone, as in LoRA. The two differ by (f -
    1) W (x - drop(x)),
    which is zero on average, and zero where training starts. As in the paper no gradient goes through |W + s B A|.
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """result: the plain map's output, its bias included; x as the map read it."""
        down, up, scaling = (
            module.lora_A[active_adapter].weight,
            module.lora_B[active_adapter].weight,
            module.scaling[active_adapter],
        )
        base = module.get_base_layer()
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(down.dtype)
        stretch = module.lora_magnitude_vector[active_adapter].weight / row_norms(base.weight, down, up, scaling)
        dropout = module.lora_dropout[active_adapter]
        thinned, scale = dropout.thinned(x) if isinstance(dropout, QuickDropout) else (dropout(x), 1.0)
        low = nn.functional.linear(thinned, down)
        more = (stretch - 1).to(result.dtype)
        longer = torch.addcmul(result, result if base.bias is None else result - base.bias, more)
        return longer + nn.functional.linear(low, stretch[:, None] * (scaling * scale) * up)


@torch.no_grad()
def row_norms(
    weight: Float[Tensor, "out in"], down: Float[Tensor, "rank in"], up: Float[Tensor, "out rank"], scaling: float
) -> Float[Tensor, " out"]:
    """|W + s B A| of every row, from |W|^2 + 2 s <W, B A> + s^2 |B A|^2, for which W is read and nothing of its size is
    written.
    """
    with torch.autocast(weight.device.type, enabled=False):
        weight, down, up = weight.float(), down.float(), scaling * up.float()
        crossed = (nn.functional.linear(weight, down) * up).sum(dim=1)
        squares = (
            torch.linalg.vector_norm(weight, dim=1).square() + 2 * crossed + ((up @ (down @ down.T)) * up).sum(dim=1)
        )
        return squares.clamp(min=0).sqrt()


def fold(network: nn.Module) -> None:
    """Puts `FusedDora` in the place of peft's in every DoRA adapter of `network`, and `QuickDropout` in every adapter
    that drops.
    """
    for module in network.modules():
        if isinstance(module, LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if type(dropout) is nn.Dropout:
                    module.lora_dropout[name] = QuickDropout(dropout.p)
            for name, variant in module.lora_variant.items():
                if type(variant) is DoraLinearVariant:
                    module.lora_variant[name] = FusedDora()
                    module.cast_input_dtype_enabled = False  # what autocast would cast back is dropped from as it is
