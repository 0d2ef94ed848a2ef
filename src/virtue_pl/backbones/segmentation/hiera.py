"""Hiera, SAM 2's image encoder, over the weights of transformers' own modules: the same numbers in a good half of the
time on a CPU.

One image at a time. The first blocks look into windows that are never mixed before the third stage, so a few windows go
through all of
them while they are in the processor's cache; transformers' attention also computes a product of queries and keys that
nothing reads.

n = windows (or 1, the whole map), s = side of a window in places, c = channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.sam2.modeling_sam2 import window_partition, window_unpartition

TILE = 2048
"""Places that go through the first blocks together: one row of windows of a canvas of 1024 pixels."""


class Hiera:
    """Runs a transformers `Sam2HieraDetModel`. It holds no weights of its own."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.known: tuple[tuple[Any, ...], Tensor] | None = None
        """The positions of the last map, behind what they came from."""

    def stages(self, pixels: Float[Tensor, "1 3 size size"]) -> list[Float[Tensor, "1 height width c"]]:
        """The map behind each of the four stages, finest first."""
        blocks, ends = list(self.network.blocks), self.network.stage_ends
        # its channels lie last behind it, too
        places = self.network.patch_embed(pixels.contiguous(memory_format=torch.channels_last))
        places = places + self.positions(tuple(places.shape[1:3]))
        inside = leading_windows(blocks, places.shape[1:3])
        found: list[Tensor] = []
        if inside:
            places, found = tiled(blocks[:inside], [end for end in ends if end < inside], places)
        for number in range(inside, len(blocks)):
            places = over_map(blocks[number], places)
            if number in ends:
                found.append(places)
        return found

    def positions(self, size: tuple[int, ...]) -> Float[Tensor, "1 height width c"]:
        """The learned positions, stretched to the map; once for as long as nothing learns them, loads others or moves
        them.
        """
        sources = self.network.pos_embed, self.network.pos_embed_window
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            return self.stretched(size)
        state = (size, *((source.data_ptr(), source._version, source.dtype, source.device) for source in sources))
        if self.known is None or self.known[0] != state:
            self.known = state, self.stretched(size)
        return self.known[1]

    def stretched(self, size: tuple[int, ...]) -> Float[Tensor, "1 height width c"]:
        positions: Tensor = self.network._get_pos_embed(size)
        return positions


def leading_windows(blocks: Sequence[Any], size: Sequence[int]) -> int:
    """How many of the first blocks never look beyond the windows of the very first."""
    side = blocks[0].window_size
    if not side or size[0] % side or size[1] % side:
        return 0
    for number, block in enumerate(blocks):
        if block.window_size != side:
            return number
        side = side // 2 if block.query_stride else side
    return len(blocks)


def tiled(
    blocks: Sequence[Any], ends: Sequence[int], places: Float[Tensor, "1 height width c"]
) -> tuple[Float[Tensor, "1 new_height new_width new_c"], list[Float[Tensor, "1 end_height end_width end_c"]]]:
    """The map behind `blocks`, and behind those of them whose numbers are `ends`; a few rows of windows at a time."""
    side, width = blocks[0].window_size, places.shape[2]
    band = side * max(1, TILE // (side * width))
    rows: list[list[Tensor]] = []
    for start in range(0, places.shape[1], band):
        strip = places[:, start : start + band]
        windows, _ = window_partition(strip, side)
        kept = []
        for number, block in enumerate(blocks):
            windows = block_in_windows(block, windows)
            if number in ends or number == len(blocks) - 1:
                kept.append(as_map(windows, strip.shape[1] // side))
        rows.append(kept)
    maps = [torch.cat(strips, dim=1) for strips in zip(*rows, strict=True)]
    return maps[-1], maps[: len(ends)]


def as_map(windows: Float[Tensor, "n s s c"], rows: int) -> Float[Tensor, "1 height width c"]:
    """Windows side by side, in `rows` rows."""
    side = windows.shape[1]
    size = (rows * side, len(windows) // rows * side)
    return window_unpartition(windows, side, size, size)


def over_map(block: Any, places: Float[Tensor, "1 height width c"]) -> Float[Tensor, "1 new_height new_width new_c"]:
    """A block over the whole map, which its windows need not tile: what they lack is padded, and cut off again."""
    if not block.window_size:
        return block_in_windows(block, places)
    normed = block.layer_norm1(places)
    short = shortcut(block, places, normed)
    windows, padded = window_partition(normed, block.window_size)
    attended = attend(block.attn, windows)
    shrink = block.window_size // attended.shape[1]
    size = (padded[0] // shrink, padded[1] // shrink)
    return with_mlp(block, short + window_unpartition(attended, attended.shape[1], size, short.shape[1:3]))


def block_in_windows(block: Any, windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n new_s new_s new_c"]:
    normed = block.layer_norm1(windows)
    return with_mlp(block, shortcut(block, windows, normed) + attend(block.attn, normed))


def with_mlp(block: Any, windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s s c"]:
    return windows + block.mlp(block.layer_norm2(windows))


def shortcut(
    block: Any, windows: Float[Tensor, "n s s c"], normed: Float[Tensor, "n s s c"]
) -> Float[Tensor, "n new_s new_s new_c"]:
    """What the attention is added to; where a stage begins, a wider map at half the resolution."""
    if block.dim == block.dim_out:
        return windows
    wider = block.proj(normed)
    return halved(wider) if block.query_stride else wider


def attend(attention: Any, windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n new_s new_s new_c"]:
    number, height, width, _ = windows.shape
    heads = attention.num_attention_heads
    query, key, value = attention.qkv(windows).reshape(number, height * width, 3, heads, -1).unbind(2)
    if attention.query_stride:
        query = halved(query.reshape(number, height, width, -1))
        height, width = query.shape[1:3]
        query = query.reshape(number, height * width, heads, -1)
    read = scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scale
    )
    return attention.proj(read.transpose(1, 2).reshape(number, height, width, -1))


def halved(windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s/2 s/2 c"]:
    """The maximum of every 2x2 places, by two plain maxima, which are faster than a pooling over channels that lie
    last.
    """
    rows = torch.maximum(windows[:, 0::2], windows[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
