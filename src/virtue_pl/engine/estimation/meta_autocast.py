"""Mixed precision and attention on the meta device, which torch's autocast and fused attention do not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""Fused attention of any dtype, with or without a mask: output and one sum a row, as on a GPU."""

LOW = {
    *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, functional.conv_transpose1d),
    *(functional.conv_transpose2d, functional.conv_transpose3d, functional.scaled_dot_product_attention),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.mv, torch.addmv),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
}
"""Functions that autocast runs in 16 bits on a GPU."""
FLOAT32 = {
    *(functional.layer_norm, functional.group_norm, functional.softmax, functional.log_softmax),
    *(functional.cross_entropy, functional.nll_loss, functional.cosine_similarity, functional.normalize),
    *(functional.binary_cross_entropy_with_logits, functional.mse_loss, functional.softplus),
    *(torch.layer_norm, torch.group_norm, torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow),
    *(torch.rsqrt, torch.norm, torch.cumsum, torch.sum, torch.prod),
    *(Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.rsqrt, Tensor.norm),
    *(Tensor.cumsum, Tensor.sum, Tensor.prod),
}
"""Functions that autocast runs in float32 on a GPU."""
OWN = frozenset({*LOW, *FLOAT32, functional.dropout})
"""Functions that do not run as they are; scaled_dot_product_attention is one of those in 16 bits."""
KEYWORDS = frozenset({"input", "weight", "bias", "mat2", "query", "key", "value", "attn_mask"})


class MetaAutocast(TorchFunctionMode):
    """A mode that does on the meta device what `torch.autocast` does on a GPU, and runs attention as one operation.

    It holds for the forward pass and for what a backward pass computes again. `torch.autocast(..., enabled=False)` in
    it turns it off, as it does on a device.

    Args:
        dtype: of matrix products and convolutions; None to leave types as they are.

    Example:
        >>> with MetaAutocast(torch.bfloat16):
        ...     product = torch.ones(2, 3, device="meta") @ torch.ones(3, 2, device="meta")
        >>> product.dtype
        torch.bfloat16
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.enabled = dtype is not None
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}
        self._patches: Any = None

    def __enter__(self) -> MetaAutocast:
        autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

        def autocast_on_meta(device_type: str, *arguments: Any, **options: Any) -> Any:
            if device_type != "meta":
                return autocast(device_type, *arguments, **options)
            return Switched(self, options.get("enabled", True))

        def is_enabled_on_meta(*device_type: str) -> bool:
            return self.enabled if device_type == ("meta",) else bool(is_enabled(*device_type))

        self._patches = patch.multiple(torch, autocast=autocast_on_meta, is_autocast_enabled=is_enabled_on_meta)
        self._patches.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.stop()
        self.forget_weights()

    def forget_weights(self) -> None:
        """Drop the weights in `dtype` that were made, as autocast does where it ends."""
        self._weights.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func not in OWN:
            return func(*args, **options)
        if self.enabled and func in LOW:
            args, options = self.convert(args, options, self.to_low)
        elif self.enabled and func in FLOAT32 and "dtype" not in options:
            args, options = self.convert(args, options, to_float32)
        if func is functional.scaled_dot_product_attention:
            return attend(*args, **options)
        if func is functional.dropout:
            return drop(*args, **options)
        return func(*args, **options)

    def convert(self, args: Any, options: Any, function: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
        """Return the arguments with `function` of the tensors among them, in lists too."""
        return tuple(convert_one(one, function) for one in args), {
            name: convert_one(one, function) if name in KEYWORDS else one for name, one in options.items()
        }

    def to_low(self, tensor: Tensor) -> Tensor:
        """Return a tensor in `dtype`; a trained weight's copy is made once and kept until the forward pass ends."""
        if not tensor.is_floating_point() or tensor.dtype in (self.dtype, torch.float64) or not tensor.is_meta:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32):
            return tensor.to(self.dtype)
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = tensor, tensor.to(self.dtype)
        return self._weights[id(tensor)][1]


class Switched:
    """A context in which a `MetaAutocast` is on or off.

    Example:
        >>> mode = MetaAutocast(torch.bfloat16)
        >>> with Switched(mode, False):
        ...     mode.enabled
        False
    """

    def __init__(self, mode: MetaAutocast, enabled: bool) -> None:
        self.mode = mode
        self.wanted = enabled and mode.dtype is not None

    def __enter__(self) -> None:
        self.before, self.mode.enabled = self.mode.enabled, self.wanted

    def __exit__(self, *error: Any) -> None:
        self.mode.enabled = self.before


def convert_one(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return `function` of a tensor, or of those in a list or tuple; anything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(convert_one(one, function) for one in value) if type(value) in (list, tuple) else value


def to_float32(tensor: Tensor) -> Tensor:
    """Return a tensor of 16 bits in float32; another as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return dropout's output as a GPU computes it, which stores a mask of one byte an element."""
    if not (input.is_meta and training and 0 < p < 1):
        return functional.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return fused attention's output, with the arguments of torch's `scaled_dot_product_attention`."""
    if not query.is_meta:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    if query.ndim == 3:
        parts = (one[None] for one in (query, key, value))
        return ATTENTION(*parts, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0][0]
    return ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]  # type: ignore[no-any-return]
