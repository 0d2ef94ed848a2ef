"""Perturbed prompts: their geometry, their seeds, and the curves of a judge whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from fixtures.scar_files import write_scar
from virtue_pl.cli.commands import robustness as command
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.evaluation.probes.perturbations import PERTURBATIONS, hide_share
from virtue_pl.evaluation.probes.robustness import robustness
from virtue_pl.evaluation.reports.robustness_plots import plot_robustness
from virtue_pl.types import EmbeddingInput, RankingSample, Region, VirtueError, VisualPrompt

SIZE = (40, 80)
BOX = torch.tensor([0.3, 0.3, 0.6, 0.7])


def mask() -> torch.Tensor:
    found = torch.zeros(SIZE, dtype=torch.bool)
    found[12:28, 24:48] = True
    return found


def prompt(mode: str) -> VisualPrompt:
    return {
        "box": VisualPrompt(boxes=BOX[None]),
        "point": VisualPrompt(points=torch.tensor([[0.45, 0.5]]), point_labels=torch.ones(1, dtype=torch.long)),
        "mask": VisualPrompt(masks=mask()[None]),
    }[mode]


def perturbed(kind: str, level: float, seed: int = 0) -> VisualPrompt:
    about = PERTURBATIONS[kind]
    return about.perturb(prompt(about.mode), level, SIZE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", sorted(PERTURBATIONS))
def test_the_neutral_level_changes_nothing(kind):
    about, found = PERTURBATIONS[kind], perturbed(kind, PERTURBATIONS[kind].neutral)
    expected = prompt(about.mode)
    assert about.neutral in about.levels
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.points, expected.points)
    assert torch.equal(found.masks, expected.masks)


def test_boxes_move_no_further_than_they_may_and_stay_boxes_in_the_image():
    for seed in range(20):
        moved = (perturbed("box_jitter", 0.2, seed).boxes[0] - BOX).abs()
        assert (moved <= 0.2 * torch.tensor([0.3, 0.4, 0.3, 0.4]) + 1e-6).all() and moved.max() > 0
        wild = (
            PERTURBATIONS["box_jitter"]
            .perturb(VisualPrompt(boxes=torch.tensor([[0.9, 0, 1, 1]])), 2, SIZE, torch.Generator().manual_seed(seed))
            .boxes[0]
        )
        assert (wild[:2] <= wild[2:]).all() and wild.min() >= 0 and wild.max() <= 1
    torch.testing.assert_close(perturbed("box_scale", 0.5).boxes[0], torch.tensor([0.375, 0.4, 0.525, 0.6]))
    torch.testing.assert_close(perturbed("box_scale", 4).boxes[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_a_click_moves_by_pixels_in_one_direction():
    pixels = torch.tensor([80, 40])
    near, far = (
        ((perturbed("click_offset", level, 3).points[0] - prompt("point").points[0]) * pixels) for level in (2, 10)
    )
    assert near.norm().item() == pytest.approx(2, abs=1e-4) and far.norm().item() == pytest.approx(10, abs=1e-4)
    torch.testing.assert_close(far, 5 * near, atol=1e-4, rtol=0)
    assert 0 <= perturbed("click_offset", 500).points.min() and perturbed("click_offset", 500).points.max() <= 1


def test_masks_shrink_grow_and_hide():
    assert perturbed("mask_erosion", 2).masks.sum() == 12 * 20
    assert perturbed("mask_dilation", 2).masks.sum() == 20 * 28
    assert perturbed("mask_erosion", 500).masks.sum() == 2 * 10, "the innermost part stays"
    for seed in range(5):
        half = perturbed("mask_cover", 0.5, seed).masks[0]
        assert half.sum() == mask().sum() // 2 and not (half & ~mask()).any()
    assert hide_share(mask(), 1.0, 0.3).sum() == 1
    upper = hide_share(mask(), 0.5, torch.pi / 2)
    assert upper[12:20, 24:48].all(), "an edge across keeps one side"


def sample(number: int, region: Region | None, task: str = "sets/seen") -> RankingSample:
    image = torch.full((3, *SIZE), number, dtype=torch.uint8)
    candidates = (EmbeddingInput("near"), EmbeddingInput("far"))
    return RankingSample(
        f"row {number}", task, EmbeddingInput("which", (image,)), candidates, {"hit@1": (0, 1)}, region
    )


def embed(items):
    """A judge who says "near" to a box of about the right size (up to a quarter off), to a point near the centre, to
    masks of more than half.
    """

    def angle(item: EmbeddingInput) -> float:
        shown = item.prompt
        if shown.is_empty:
            return {"near": 0.0, "far": 1.5}[item.text]
        if len(shown.boxes):
            width = float(shown.boxes[0, 2] - shown.boxes[0, 0])
            return abs(width / 0.3 - 1) * 2.9
        if len(shown.points):
            return float((shown.points[0] - torch.tensor([0.45, 0.5])).norm()) * 3
        return abs(1 - float(shown.masks.float().sum() / mask().sum())) * 1.4

    angles = torch.tensor([angle(item) for item in items])
    return normalize(torch.stack([angles.cos(), angles.sin()], dim=1), dim=1)


def test_curves_of_a_judge_whose_answers_are_known():
    samples = [sample(number, Region(BOX, mask())) for number in range(5)] + [sample(9, None)]
    found = robustness(embed, samples, ("box_scale", "mask_cover"), group=2)
    assert found.without_region == 1
    curves = found.as_json()["sets/seen"]
    scale = {row["level"]: row for row in curves["box_scale"]["levels"]}
    assert [scale[level]["hit@1"] for level in (0.5, 0.75, 1, 1.25, 1.5, 2)] == [0, 1, 1, 1, 0, 0]
    assert scale[1]["cosine"] == pytest.approx(1) and scale[1]["same_first"] == 1 and scale[2]["same_first"] == 0
    assert all(row["n"] == 5 and row["standard_error"] == pytest.approx(0.266, abs=1e-3) for row in scale.values())
    assert [row["hit@1"] for row in curves["mask_cover"]["levels"]] == [1, 1, 1, 0]


def test_what_is_drawn_depends_on_seed_key_and_kind_alone():
    samples = [sample(number, Region(BOX, mask())) for number in range(6)]
    whole = robustness(embed, samples, group=6).as_json()
    parts = robustness(embed, samples[::-1], ("click_offset", "box_jitter"), group=1).as_json()
    for kind in ("click_offset", "box_jitter"):
        for row, other in zip(whole["sets/seen"][kind]["levels"], parts["sets/seen"][kind]["levels"], strict=True):
            assert row == pytest.approx(other)
    other = robustness(embed, samples, ("box_jitter",), seed=1).as_json()["sets/seen"]["box_jitter"]["levels"]
    assert other[-1]["cosine"] != pytest.approx(whole["sets/seen"]["box_jitter"]["levels"][-1]["cosine"])


def test_regions_without_masks_have_no_curves_of_masks():
    found = robustness(embed, [sample(0, Region(BOX))])
    assert set(found.tallies["sets/seen"]) == {"box_jitter", "box_scale", "click_offset"}


@pytest.mark.parametrize(
    ("samples", "options", "told"),
    [
        ([sample(0, Region(BOX))], {"kinds": ("box_shake",)}, "kinds: 'box_shake', expected some of box_jitter"),
        ([sample(0, None)], {}, "none of 1 samples can be pointed at"),
        ([sample(0, Region(BOX))], {"kinds": ("mask_cover",)}, "can be pointed at in a way that mask_cover perturb"),
        (
            [replace(sample(0, Region(BOX)), rankings={"object": (0, 1)})],
            {},
            "row 0 has the rankings object, expected hit@1",
        ),
    ],
)
def test_what_cannot_be_measured_is_told(samples, options, told):
    with pytest.raises(VirtueError, match=told):
        robustness(embed, samples, **options)


def test_a_curve_of_each_kind_is_drawn(tmp_path):
    samples = [sample(number, Region(BOX, mask()), task) for number, task in enumerate(("sets/seen", "sets/held_out"))]
    paths = plot_robustness(robustness(embed, samples), tmp_path)
    assert sorted(path.name for path in paths) == sorted(f"robustness_{kind}.png" for kind in PERTURBATIONS)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 500


def test_the_command_writes_numbers_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Judge:
        embed = staticmethod(embed)

        @classmethod
        def from_pretrained(cls, name: str, **options: object) -> Judge:
            assert name == "model" and options["dtype"] == "bfloat16"
            return cls()

    def judge(items):
        return normalize(
            torch.tensor([[float(len(item.text) % 3), 1.0 + float(item.prompt.boxes.sum())] for item in items]), dim=1
        )

    Judge.embed = staticmethod(judge)
    monkeypatch.setattr("virtue_pl.embedder.Embedder", Judge)
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "shards")
    arguments = [
        "--model",
        "model",
        "--shards",
        f"mine={tmp_path / 'shards' / 'SCaR_eval_mini_val'}",
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main([*arguments, "--dtype", "bfloat16", "--kinds", "box_jitter", "mask_cover", "--seed", "4"]) == 0
    report = json.loads((tmp_path / "out" / "robustness.json").read_text())
    (task,) = report["tasks"]
    assert task.endswith("/mine") and report["context"]["seed"] == 4 and report["without_region"] == 0
    assert [row["n"] for row in report["tasks"][task]["box_jitter"]["levels"]] == [3] * 6
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "robustness_box_jitter.png",
        "robustness_mask_cover.png",
    ]
    assert "imprecise prompts" in capsys.readouterr().out
    with pytest.raises(VirtueError, match=r"name a set twice, expected each once: write NAME=FOLDER"):
        command.folders(["a/x", "b/x"], tmp_path)
