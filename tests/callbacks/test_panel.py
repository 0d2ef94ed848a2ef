"""Panels: what is drawn where, and which caption is marked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fixtures.tiny_models import save_text_model
from virtue_pl.backbones.vlm.timm_text import TimmTextProcessor
from virtue_pl.callbacks.panel import (
    BAR,
    BLUE,
    GREEN,
    IMAGE,
    LIST,
    MARGIN,
    MAX_CAPTIONS,
    OUTLINE,
    PALE_GREEN,
    RED,
    ROW,
    fit,
    font,
    render_panel,
)
from virtue_pl.callbacks.prompt_images import panel_of
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import CropFormatter, VirtueFormatter
from virtue_pl.types import EmbeddingInput, RankingOutput, RankingSample, Region, VisualPrompt

CAPTIONS = [f"a toy number {number} on the grass" for number in range(12)]
SCORES = torch.linspace(0.9, 0.1, 12)
GREY_IMAGE = torch.full((3, 60, 80), 128, dtype=torch.uint8)


def panel(
    prompt: VisualPrompt | None = None, mask: Tensor | None = None, gold: int = 0, count: int = 10, title: str = ""
) -> Tensor:
    return render_panel(GREY_IMAGE, prompt or VisualPrompt(), mask, CAPTIONS[:count], SCORES[:count], gold, title)


def near(pixels: Tensor, colour: tuple[int, int, int], tolerance: int = 30) -> Tensor:
    return (pixels.int() - torch.tensor(colour)[:, None, None]).abs().amax(dim=0) <= tolerance


def make_image(pixels: Tensor) -> Tensor:
    return pixels[:, MARGIN : MARGIN + IMAGE * 60 // 80, MARGIN : MARGIN + IMAGE]


def line_of(pixels: Tensor, number: int) -> Tensor:
    return pixels[:, MARGIN + number * ROW : MARGIN + (number + 1) * ROW, 2 * MARGIN + IMAGE :]


def test_a_panel_is_an_uint8_image_of_fixed_width() -> None:
    pixels = panel(title="box · test_seen · scene-7")
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3 and pixels.shape[2] == 3 * MARGIN + IMAGE + LIST


def test_a_box_is_red_where_it_lies() -> None:
    pixels = make_image(panel(VisualPrompt(boxes=torch.tensor([[0.25, 0.25, 0.75, 0.5]]))))
    rows, columns = near(pixels, RED).nonzero().T
    for found, expected in ((columns.min(), 80), (columns.max(), 240), (rows.min(), 60), (rows.max(), 120)):
        assert abs(found.item() - expected) <= 3


def test_points_are_red_inside_and_blue_outside() -> None:
    prompt = VisualPrompt(points=torch.tensor([[0.25, 0.5], [0.75, 0.5]]), point_labels=torch.tensor([1, 0]))
    pixels = make_image(panel(prompt))
    for colour, x in ((RED, 80), (BLUE, 240)):
        columns = near(pixels, colour).nonzero()[:, 1].float()
        assert columns.mean().item() == pytest.approx(x, abs=3)


def test_masks_are_outlined_where_prompted_and_tinted_where_predicted() -> None:
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[0, 15:45, 20:60] = True
    outlined = make_image(panel(VisualPrompt(masks=mask)))
    assert near(outlined, OUTLINE).any() and near(outlined[:, 100:140, 140:180], (128, 128, 128)).all()
    tinted = make_image(panel(mask=torch.where(mask[0], 4.0, -4.0)))
    assert (tinted[2, 100:140, 140:180] > tinted[0, 100:140, 140:180] + 40).all()
    assert near(tinted[:, :30, :30], (128, 128, 128)).all()


@pytest.mark.parametrize(("gold", "line"), [(0, 0), (3, 3), (11, MAX_CAPTIONS - 1)])
def test_only_the_right_caption_is_green_and_it_is_always_shown(gold: int, line: int) -> None:
    pixels = panel(gold=gold, count=12)
    assert [number for number in range(MAX_CAPTIONS) if near(line_of(pixels, number), GREEN, 10).any()] == [line]


def test_equal_scores_put_the_right_caption_last() -> None:
    pixels = render_panel(GREY_IMAGE, VisualPrompt(), None, CAPTIONS[:4], torch.zeros(4), 0)
    assert near(line_of(pixels, 3), PALE_GREEN, 5).any() and not near(line_of(pixels, 3), BAR, 2).any()


def test_long_captions_end_in_an_ellipsis_and_stay_in_their_column() -> None:
    cut = fit("a very long caption\n" * 20, 14, 300)
    assert cut.endswith("...") and "\n" not in cut
    assert font(14).getlength(cut) <= 300
    assert fit("short", 14, 300) == "short"


@pytest.mark.parametrize("mode", ["box", "point"])
def test_a_region_that_the_model_is_shown_as_a_crop_is_drawn_too(mode: str, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 40, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    captions = (EmbeddingInput("a cat"), EmbeddingInput("a dog"))
    region = Region(torch.tensor([0.1, 0.2, 0.5, 0.8]))
    query = EmbeddingInput("which?", (image,), image_keys=("image",))
    sample = RankingSample("key", "task", query, captions, {"hit@1": (0, 1)}, region)
    processor, output = TimmTextProcessor(save_text_model(tmp_path), 32, 1, 64), RankingOutput((torch.rand(2),))
    panels = []
    for formatter in (VirtueFormatter(), CropFormatter()):
        collator = ContrastiveCollator(processor, formatter, None, {"box": 1.0}, (mode,))
        panels.append(panel_of(collator.collate_eval([sample]), output, 0, 0))
    assert torch.equal(*panels)
