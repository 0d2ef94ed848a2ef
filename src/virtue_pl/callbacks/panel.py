"""Image of one retrieval: the query with its prompt and predicted mask beside its ranked captions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.metrics.ranking import gold_ranks, rank_candidates
from virtue_pl.preprocessing.prompts import erode
from virtue_pl.types import VisualPrompt

Colour = tuple[int, int, int]

IMAGE, MARGIN, ROW, LIST = 320, 14, 29, 480
"""Sizes in pixels: the image's longer side, margins, a caption's height, the captions' width."""
SMOOTH = 2
"""Factor by which the image is drawn larger and then shrunk, which smooths the lines."""
MAX_CAPTIONS = 10
RED, BLUE, WHITE, INK, GREY = (225, 29, 46), (37, 99, 235), (255, 255, 255), (31, 41, 55), (140, 147, 160)
GREEN, PALE_GREEN, BAR, MASK, OUTLINE = (21, 128, 61), (214, 242, 222), (226, 232, 244), (30, 110, 255), (255, 196, 0)


def render_panel(
    image: UInt8[Tensor, "3 image_height image_width"],
    prompt: VisualPrompt,
    mask_logits: Float[Tensor, "mask_height mask_width"] | None,
    captions: Sequence[str],
    scores: Float[Tensor, " captions"],
    gold: int,
    title: str = "",
) -> UInt8[Tensor, "3 height width"]:
    """Draw the query at the left and at most ten captions at the right, best first.

    Boxes are red, points red (inside, +) or blue (outside, -), a prompted mask has a yellow outline; the predicted mask
    (`mask_logits` > 0) is tinted blue. gold: the index of the right caption; should it not be among the first ten, it
    replaces the tenth.
    """
    query_image = draw_query(image, prompt, mask_logits)
    top = MARGIN + (26 if title else 0)
    height = top + max(query_image.height, min(len(captions), MAX_CAPTIONS) * ROW) + MARGIN
    canvas = Image.new("RGB", (3 * MARGIN + IMAGE + LIST, height), WHITE)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 3), fit(title, 15, canvas.width - 2 * MARGIN), INK, font(15))
    canvas.paste(query_image, (MARGIN + (IMAGE - query_image.width) // 2, top))
    draw_captions(draw, (2 * MARGIN + IMAGE, top), captions, scores.detach().float().cpu(), gold)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def draw_query(
    image: UInt8[Tensor, "3 height width"],
    prompt: VisualPrompt,
    mask_logits: Float[Tensor, "mask_height mask_width"] | None,
) -> Image.Image:
    """Draw the image at the panel's size, with the predicted mask and the prompt on it."""
    height, width = image.shape[1:]
    scale = SMOOTH * IMAGE / max(height, width)
    size = (max(SMOOTH, round(width * scale)), max(SMOOTH, round(height * scale)))
    drawn_image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).resize(
        size, Image.Resampling.LANCZOS
    )
    if mask_logits is not None:
        inside = resize_map(mask_logits.detach().float(), size) > 0
        drawn_image = paint(paint(drawn_image, inside, MASK, 0.5), edge(inside, 2), WHITE, 0.9)
    for mask in prompt.masks:
        drawn_image = paint(drawn_image, edge(resize_map(mask.float(), size) > 0.5, 3), OUTLINE, 1.0)
    draw_prompt(ImageDraw.Draw(drawn_image), prompt, size)
    return drawn_image.resize((size[0] // SMOOTH, size[1] // SMOOTH), Image.Resampling.LANCZOS)


def resize_map(values: Float[Tensor, "height width"], size: tuple[int, int]) -> Float[Tensor, "new_height new_width"]:
    """Resize a map to `size` = (width, height), in pixels."""
    return interpolate(values.cpu()[None, None], size[::-1], mode="bilinear", align_corners=False)[0, 0]


def edge(mask: Bool[Tensor, "height width"], thickness: int) -> Bool[Tensor, "height width"]:
    """Return the mask's pixels within `thickness` of its outside."""
    return mask & ~erode(mask, thickness)


def paint(image: Image.Image, where: Bool[Tensor, "height width"], colour: Colour, strength: float) -> Image.Image:
    """Return the image with `colour` laid over the given pixels. strength: from 0 to 1."""
    cover = Image.fromarray((where.numpy() * round(255 * strength)).astype(np.uint8))
    return Image.composite(Image.new("RGB", image.size, colour), image, cover)


def draw_prompt(draw: ImageDraw.ImageDraw, prompt: VisualPrompt, size: tuple[int, int]) -> None:
    """Draw boxes and points, each with a white rim, on an image of `size` = (width, height)."""
    scale = torch.tensor(size)
    for box in (prompt.boxes.cpu() * scale.repeat(2)).tolist():
        draw.rectangle([box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2], outline=WHITE, width=9)
        draw.rectangle(box, outline=RED, width=5)
    for (x, y), label in zip((prompt.points.cpu() * scale).tolist(), prompt.point_labels.tolist(), strict=True):
        radius, colour = 13, RED if label else BLUE
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline=WHITE, width=3)
        draw.line([x - 6, y, x + 6, y], fill=WHITE, width=3)
        if label:
            draw.line([x, y - 6, x, y + 6], fill=WHITE, width=3)


def draw_captions(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    captions: Sequence[str],
    scores: Float[Tensor, " captions"],
    gold: int,
) -> None:
    """Draw captions with their scores, one a line, best first.

    A bar behind each shows its score between the lowest and the highest.
    """
    order = rank_candidates(scores[None], torch.tensor([gold]))[0].tolist()
    gold_rank = int(gold_ranks(scores[None], None, torch.tensor([gold])))
    shown = list(enumerate(order))[:MAX_CAPTIONS]
    if gold_rank >= MAX_CAPTIONS:
        shown[-1] = (gold_rank, gold)
    lowest, highest = scores.min().item(), scores.max().item()
    for line, (rank, caption) in enumerate(shown):
        share = (scores[caption].item() - lowest) / (highest - lowest) if highest > lowest else 0.0
        draw_caption(
            draw,
            (corner[0], corner[1] + line * ROW),
            rank + 1,
            captions[caption],
            scores[caption].item(),
            share,
            caption == gold,
        )


def draw_caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    rank: int,
    caption: str,
    score: float,
    share: float,
    right: bool,
) -> None:
    """Draw one line: rank, caption and score over a bar as long as `share` of the width; the right one is green."""
    x, y = corner
    bottom = y + ROW - 4
    draw.rounded_rectangle(
        [x, y, x + round(LIST * (0.04 + 0.96 * share)), bottom], radius=4, fill=PALE_GREEN if right else BAR
    )
    if right:
        draw.rounded_rectangle([x, y, x + LIST, bottom], radius=4, outline=GREEN, width=2)
        draw.line([x + 29, y + 13, x + 33, y + 18, x + 41, y + 7], fill=GREEN, width=3, joint="curve")
    ink = GREEN if right else INK
    middle = (y + bottom) / 2
    draw.text((x + 22, middle), str(rank), GREY if not right else GREEN, font(13), anchor="rm")
    draw.text((x + 48, middle), fit(caption, 14, LIST - 48 - 54), ink, font(14), anchor="lm")
    draw.text((x + LIST - 8, middle), f"{score:.3f}", ink, font(13), anchor="rm")


def fit(text: str, size: int, width: int) -> str:
    """Return `text` on one line, cut with an ellipsis where it is longer than `width` pixels."""
    text = " ".join(text.split())
    if font(size).getlength(text) <= width:
        return text
    fitting = bisect_right(range(len(text)), width, key=lambda end: math.ceil(font(size).getlength(text[:end] + "...")))
    return text[: fitting - 1].rstrip() + "..."


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)  # type: ignore[return-value]
