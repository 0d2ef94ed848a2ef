"""Attention of a Qwen-VL's tower, and all that it needs of its images, computed on the host from their sizes.

transformers' towers take sizes as a tensor, read it back from the device several times a layer, and attend image by
image or window by window. Here lengths are integers, and stretches of equal length attend together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from virtue_pl.backbones import cpu_tiles
from virtue_pl.types import index_tensors
from virtue_pl.types.layout import group_by_owner

Grid = tuple[int, int]
"""Rows and columns of an image's patches."""


class Stretches:
    """Stretches of tokens, one after the other, each of which attends to itself alone; their lengths are on the host.

    Example:
        >>> Stretches((4, 2, 4)).groups
        {4: [0, 2], 2: [1]}
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self._indices: list[Tensor] | None = None

    @cached_property
    def groups(self) -> dict[int, list[int]]:
        """The numbers of the stretches of each length."""
        return group_by_owner(self.lengths)

    def indices(self, device: torch.device) -> list[Int[Tensor, " tokens"]]:
        """Return the tokens of each group, and where each token of all stretches stands in the groups; made once."""
        if self._indices is None:
            starts = list(accumulate(self.lengths, initial=0))
            tokens = [
                [token for number in numbers for token in range(starts[number], starts[number + 1])]
                for numbers in self.groups.values()
            ]
            order = [token for group in tokens for token in group]
            self._indices = list(index_tensors([*tokens, sorted(range(len(order)), key=order.__getitem__)], device))
        return self._indices


class TowerAttention(nn.Module):
    """A tower's own attention, which attends within stretches that the host knows; its maps keep their names.

    On a CPU one stretch at a time, as transformers does; on any other device all of equal length together.

    Args:
        stock: the attention of a block of a Qwen-VL's tower, in transformers' implementation "sdpa".

    Example:
        >>> from types import SimpleNamespace
        >>> maps = {"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)}
        >>> attention = TowerAttention(SimpleNamespace(**maps, num_heads=2, scaling=0.5))
        >>> rotation = torch.ones(6, 4), torch.zeros(6, 4)
        >>> attention(torch.randn(6, 8), Stretches((4, 2)), rotation).shape
        torch.Size([6, 8])
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.qkv: nn.Linear = stock.qkv
        self.proj: nn.Linear = stock.proj
        self.num_heads: int = stock.num_heads
        self.scaling: float = stock.scaling

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens width"],
        cu_seqlens: Stretches | Int[Tensor, " ends"],
        position_embeddings: tuple[Float[Tensor, "tokens head_dim"], Float[Tensor, "tokens head_dim"]],
        **_: Any,
    ) -> Float[Tensor, "tokens width"]:
        """Return what each token reads of its stretch. The arguments have the names that transformers' blocks use.

        cu_seqlens: where stretches end, as a tensor from transformers' own forward, is read back.
        """
        stretches = cu_seqlens if isinstance(cu_seqlens, Stretches) else Stretches(cu_seqlens.diff().tolist())
        states = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1)
        query, key, value = states.unbind(dim=1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        attend = self.attend_each if cpu_tiles.uses_tiles(query.device) else self.attend_together
        return self.proj(attend((query, key, value), stretches).flatten(1))

    def attend_each(
        self, states: tuple[Float[Tensor, "tokens heads head_dim"], ...], stretches: Stretches
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Return the attention's output, one stretch at a time."""
        parts = (each.transpose(0, 1)[None].split(stretches.lengths, dim=2) for each in states)
        read = [
            scaled_dot_product_attention(query, key, value, scale=self.scaling)
            for query, key, value in zip(*parts, strict=True)
        ]
        return torch.cat([part[0].transpose(0, 1) for part in read])

    def attend_together(
        self, states: tuple[Float[Tensor, "tokens heads head_dim"], ...], stretches: Stretches
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Return the attention's output, all stretches of a length at a time."""
        if len(stretches.groups) == 1:
            return self.attend_equal(states, stretches.lengths[0])
        *groups, back = stretches.indices(states[0].device)
        read = [
            self.attend_equal(tuple(each[tokens] for each in states), length)
            for length, tokens in zip(stretches.groups, groups, strict=True)
        ]
        return torch.cat(read)[back]

    def attend_equal(
        self, states: tuple[Float[Tensor, "tokens heads head_dim"], ...], length: int
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Return the attention's output of stretches of one length."""
        query, key, value = (each.unflatten(0, (-1, length)).transpose(1, 2) for each in states)
        return scaled_dot_product_attention(query, key, value, scale=self.scaling).transpose(1, 2).flatten(0, 1)


def join_on(device: torch.device, parts: Sequence[Tensor]) -> Tensor:
    """Return tensors of the host as one on a device."""
    return torch.cat(list(parts)).to(device, non_blocking=device.type == "cuda")


@lru_cache(maxsize=1024)
def patch_positions(grid: Grid, merge_size: int) -> Int[Tensor, "patches 2"]:
    """Return row and column of each patch of an image, in the order of tokens."""
    return get_vision_position_ids(torch.tensor([[1, *grid]]), merge_size)


@lru_cache(maxsize=1024)
def window_order(
    grid: Grid, merge_size: int, window_size: int, patch_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return an image's tokens window by window, and the number of patches in each window."""
    order, ends = get_vision_window_index(torch.tensor([[1, *grid]]), merge_size, window_size, patch_size)
    return tuple(order.tolist()), tuple(ends.diff().tolist())


@lru_cache(maxsize=256)
def position_weights(
    grid: Grid, grid_size: int, mode: str, align_corners: bool, merge_size: int
) -> tuple[Int[Tensor, "patches taps"], Float[Tensor, "patches taps"]]:
    """Return which learned positions are mixed for each patch of an image, and in which shares.

    grid_size: learned positions along a side.
    """
    return get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, *grid]]), grid_size, mode, align_corners, merge_size
    )
