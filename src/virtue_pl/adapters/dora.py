"""DoRA (arXiv 2402.09353) in one product: half of peft's work in training, and no temporary of the weight's size."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from virtue_pl.adapters.dropout import QuickDropout


class FusedDora(DoraLinearVariant):
    """DoRA's forward pass of a linear map: y = f (W x + s B A drop(x)) + bias, with f = m / |W + s B A| by output.

    Without dropout these are peft's numbers. With it, peft reads W twice, and its dropout also reaches W where f is not
    1: y = W x + (f - 1) W drop(x) + f s B A drop(x). Here it reaches the update alone, as in LoRA. The two differ by
    (f - 1) W (x - drop(x)), which is zero on average, and zero where training starts. As in the paper no gradient goes
    through |W + s B A|.

    Example:
        >>> from peft import LoraConfig, inject_adapter_in_model
        >>> config = LoraConfig(r=2, target_modules=["0"], use_dora=True)
        >>> network = inject_adapter_in_model(config, nn.Sequential(nn.Linear(4, 3)))
        >>> fuse_adapters(network)
        >>> type(network[0].lora_variant["default"]).__name__
        'FusedDora'
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return the adapted output, from the plain map's `result` (its bias included) and its input `x`."""
        down, up, scaling = (
            module.lora_A[active_adapter].weight,
            module.lora_B[active_adapter].weight,
            module.scaling[active_adapter],
        )
        base = module.get_base_layer()
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(down.dtype)
        factor = module.lora_magnitude_vector[active_adapter].weight / row_norms(base.weight, down, up, scaling)
        dropout = module.lora_dropout[active_adapter]
        dropped, scale = dropout.drop_unscaled(x) if isinstance(dropout, QuickDropout) else (dropout(x), 1.0)
        low_rank = nn.functional.linear(dropped, down)
        excess = (factor - 1).to(result.dtype)
        stretched = torch.addcmul(result, result if base.bias is None else result - base.bias, excess)
        return stretched + nn.functional.linear(low_rank, factor[:, None] * (scaling * scale) * up)


@torch.no_grad()
def row_norms(
    weight: Float[Tensor, "out in"], down: Float[Tensor, "rank in"], up: Float[Tensor, "out rank"], scaling: float
) -> Float[Tensor, " out"]:
    """Return |W + s B A| of every row, as the root of |W|^2 + 2 s <W, B A> + s^2 |B A|^2.

    W is read, and nothing of its size is written.
    """
    with torch.autocast(weight.device.type, enabled=False):
        weight, down, up = weight.float(), down.float(), scaling * up.float()
        crossed = (nn.functional.linear(weight, down) * up).sum(dim=1)
        squares = (
            torch.linalg.vector_norm(weight, dim=1).square() + 2 * crossed + ((up @ (down @ down.T)) * up).sum(dim=1)
        )
        return squares.clamp(min=0).sqrt()


def fuse_adapters(network: nn.Module) -> None:
    """Replace peft's DoRA by `FusedDora`, and its dropout by `QuickDropout`, in every adapter of `network`."""
    for module in network.modules():
        if isinstance(module, LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if type(dropout) is nn.Dropout:
                    module.lora_dropout[name] = QuickDropout(dropout.p)
            for name, variant in module.lora_variant.items():
                if type(variant) is DoraLinearVariant:
                    module.lora_variant[name] = FusedDora()
                    module.cast_input_dtype_enabled = False  # dropout reads the input as it is; autocast casts it later
