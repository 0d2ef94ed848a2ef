"""Hiera, SAM 2's image encoder, on the weights of transformers' own modules: the same numbers in half of the time.

The first blocks attend within windows that are never mixed before the third stage. On a CPU a few windows of one image
go through all of these blocks while they are in the processor's cache. Any other device has no such cache, and pays for
each kernel it starts: there the windows of all images go through together. transformers' attention also computes a
product of queries and keys that nothing reads.

Shapes: b = images, n = windows (or b, the whole maps), s = cells along a window's side, c = channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.sam2.modeling_sam2 import window_partition, window_unpartition

from virtue_pl.backbones import cpu_tiles

TILE_TOKENS = 2048
"""Cells that go through the first blocks together on a CPU: one row of windows on a canvas of 1024 pixels."""
BATCH_PIXELS = 16 * 1024**2
"""Pixels that are encoded together on any other device, 16 images of 1024 pixels: more would only take memory."""


class Hiera:
    """Runs a transformers `Sam2HieraDetModel`, without weights of its own.

    Example:
        >>> backbone = Sam2Backbone()  # doctest: +SKIP
        >>> maps = Hiera(backbone.vision_encoder.backbone).stages(pixels)
        >>> [tuple(stage.shape) for stage in maps]
        [(1, 256, 256, 112), (1, 128, 128, 224), (1, 64, 64, 448), (1, 32, 32, 896)]
    """

    not_in_fingerprint = frozenset({"cached_positions"})

    def __init__(self, network: Any) -> None:
        self.network = network
        self.cached_positions: tuple[tuple[Any, ...], Tensor] | None = None
        """The positions of the last map, behind what they were computed from."""

    def stages(self, pixels: Float[Tensor, "b 3 size size"]) -> list[Float[Tensor, "b height width c"]]:
        """Return the maps behind each of the four stages, finest first."""
        blocks, ends = list(self.network.blocks), self.network.stage_ends
        # channels last, as its output
        features = self.network.patch_embed(pixels.contiguous(memory_format=torch.channels_last))
        features = features + self.positions(tuple(features.shape[1:3]))
        num_windowed = leading_windows(blocks, features.shape[1:3])
        found: list[Tensor] = []
        if num_windowed:
            windowed_ends = [end for end in ends if end < num_windowed]
            run = run_in_strips if cpu_tiles.uses_tiles(features.device) else run_in_windows
            features, found = run(blocks[:num_windowed], windowed_ends, features)
        for number in range(num_windowed, len(blocks)):
            features = run_block_on_map(blocks[number], features)
            if number in ends:
                found.append(features)
        return found

    def positions(self, size: tuple[int, ...]) -> Float[Tensor, "1 height width c"]:
        """Return the learned positions, interpolated to the map; cached until they are trained, reloaded or moved."""
        sources = self.network.pos_embed, self.network.pos_embed_window
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            return self.interpolate_positions(size)
        state = (size, *((source.data_ptr(), source._version, source.dtype, source.device) for source in sources))
        if self.cached_positions is None or self.cached_positions[0] != state:
            self.cached_positions = state, self.interpolate_positions(size)
        return self.cached_positions[1]

    def interpolate_positions(self, size: tuple[int, ...]) -> Float[Tensor, "1 height width c"]:
        """Return the learned positions at `size`, as transformers computes them."""
        positions: Tensor = self.network._get_pos_embed(size)
        return positions


def images_at_once(pixels: Shaped[Tensor, "b 3 height width"]) -> int:
    """Return how many of the images are encoded together on their device: one on a CPU, elsewhere a batch."""
    if cpu_tiles.uses_tiles(pixels.device):
        return 1
    return max(1, BATCH_PIXELS // (pixels.shape[2] * pixels.shape[3]))


def leading_windows(blocks: Sequence[Any], size: Sequence[int]) -> int:
    """Return how many of the first blocks never attend beyond the windows of the very first."""
    window_size = blocks[0].window_size
    if not window_size or size[0] % window_size or size[1] % window_size:
        return 0
    for number, block in enumerate(blocks):
        if block.window_size != window_size:
            return number
        window_size = window_size // 2 if block.query_stride else window_size
    return len(blocks)


def run_in_strips(
    blocks: Sequence[Any], ends: Sequence[int], features: Float[Tensor, "b height width c"]
) -> tuple[Float[Tensor, "b new_height new_width new_c"], list[Float[Tensor, "b end_height end_width end_c"]]]:
    """Return what `run_in_windows` does, a few rows of windows at a time."""
    window_size, width = blocks[0].window_size, features.shape[2]
    strip_height = window_size * max(1, TILE_TOKENS // (window_size * width))
    rows = [run_in_windows(blocks, ends, strip) for strip in features.split(strip_height, dim=1)]
    last = torch.cat([strip for strip, _ in rows], dim=1)
    return last, [torch.cat(strips, dim=1) for strips in zip(*(found for _, found in rows), strict=True)]


def run_in_windows(
    blocks: Sequence[Any], ends: Sequence[int], features: Float[Tensor, "b height width c"]
) -> tuple[Float[Tensor, "b new_height new_width new_c"], list[Float[Tensor, "b end_height end_width end_c"]]]:
    """Return the maps behind `blocks`, and behind those with the numbers `ends`.

    The windows of `blocks` tile the maps (`leading_windows`), which are cut once.
    """
    rows, columns = (length // blocks[0].window_size for length in features.shape[1:3])
    windows, _ = window_partition(features, blocks[0].window_size)
    found = []
    for number, block in enumerate(blocks):
        windows = run_block_on_windows(block, windows)
        if number in ends:
            found.append(join_windows(windows, rows, columns))
    last = len(blocks) - 1
    return found[-1] if last in ends else join_windows(windows, rows, columns), found


def join_windows(windows: Float[Tensor, "n s s c"], rows: int, columns: int) -> Float[Tensor, "b height width c"]:
    """Return the maps that the windows make up side by side, in `rows` rows and `columns` columns."""
    window_size = windows.shape[1]
    size = (rows * window_size, columns * window_size)
    return window_unpartition(windows, window_size, size, size)


def run_block_on_map(
    block: Any, features: Float[Tensor, "b height width c"]
) -> Float[Tensor, "b new_height new_width new_c"]:
    """Return a block's output for whole maps, padded where its windows do not tile them, and cropped again."""
    if not block.window_size:
        return run_block_on_windows(block, features)
    normed = block.layer_norm1(features)
    residual = shortcut(block, features, normed)
    windows, padded = window_partition(normed, block.window_size)
    attended = attend(block.attn, windows)
    shrink = block.window_size // attended.shape[1]
    size = (padded[0] // shrink, padded[1] // shrink)
    return add_mlp(block, residual + window_unpartition(attended, attended.shape[1], size, residual.shape[1:3]))


def run_block_on_windows(block: Any, windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n new_s new_s new_c"]:
    """Return a block's output for windows that attend to themselves alone."""
    normed = block.layer_norm1(windows)
    return add_mlp(block, shortcut(block, windows, normed) + attend(block.attn, normed))


def add_mlp(block: Any, windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s s c"]:
    """Return the windows with the output of the block's MLP added."""
    return windows + block.mlp(block.layer_norm2(windows))


def shortcut(
    block: Any, windows: Float[Tensor, "n s s c"], normed: Float[Tensor, "n s s c"]
) -> Float[Tensor, "n new_s new_s new_c"]:
    """Return the residual branch; where a stage begins, it is a wider map at half the resolution."""
    if block.dim == block.dim_out:
        return windows
    wider = block.proj(normed)
    return max_pool_2x2(wider) if block.query_stride else wider


def attend(attention: Any, windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n new_s new_s new_c"]:
    """Return the attention's output within each window, of pooled queries where a stage begins."""
    number, height, width, _ = windows.shape
    heads = attention.num_attention_heads
    query, key, value = attention.qkv(windows).reshape(number, height * width, 3, heads, -1).unbind(2)
    if attention.query_stride:
        query = max_pool_2x2(query.reshape(number, height, width, -1))
        height, width = query.shape[1:3]
        query = query.reshape(number, height * width, heads, -1)
    read = scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scale
    )
    return attention.proj(read.transpose(1, 2).reshape(number, height, width, -1))


def max_pool_2x2(windows: Float[Tensor, "n s s c"]) -> Float[Tensor, "n s/2 s/2 c"]:
    """Return the maximum of every 2x2 cells, by two plain maxima: faster than pooling where channels lie last."""
    rows = torch.maximum(windows[:, 0::2], windows[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
