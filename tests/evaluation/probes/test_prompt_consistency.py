"""Which variants to point are alike: shares of a judge whose answers are known, and the command on a model that has
learned nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fixtures.scar_files import rle, write_scar
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.cli.commands import robustness as command
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.probes.prompt_consistency import PROMPT_VARIANTS, box_mask, prompt_consistency
from virtue_pl.types import EmbeddingInput, RankingSample, Region

SIZE = (64, 64)
LEFT, RIGHT = torch.tensor([0.0, 0.25, 0.375, 0.75]), torch.tensor([0.625, 0.25, 1.0, 0.75])


def sample(number: int, box: torch.Tensor, task: str = "sets/seen", masked: bool = True) -> RankingSample:
    image = torch.full((3, *SIZE), number, dtype=torch.uint8)
    query = EmbeddingInput("which", (image,), image_keys=(str(number),))
    return RankingSample(
        f"{number} {box.tolist()}",
        task,
        query,
        (EmbeddingInput("a"),),
        {"hit@1": (0,)},
        Region(box, box_mask(box) if masked else None),
    )


def where(item: EmbeddingInput) -> float:
    """The middle of what is pointed at, from left to right."""
    shown = item.prompt
    if len(shown.boxes):
        return float(shown.boxes[0, [0, 2]].mean())
    if len(shown.points):
        return float(shown.points[0, 0])
    return float(shown.masks[0].nonzero()[:, 1].float().mean() + 0.5) / shown.masks.shape[-1]


def judge(items):
    angles = torch.tensor([1.5 * where(item) for item in items])
    return normalize(torch.stack([angles.cos(), angles.sin()], dim=1), dim=1)


def own_masks(items):
    """Of a model that takes the left object for the right one, too."""
    return [box_mask(RIGHT) for _ in items]


def test_shares_of_a_judge_whose_answers_are_known():
    samples = [sample(0, LEFT), sample(0, RIGHT), sample(1, LEFT), sample(2, LEFT), sample(2, LEFT + 0.01)]
    found = prompt_consistency(judge, samples, own_masks)
    assert found.without_other_region == 3, "one is the only one, two are of one region"
    variants = found.as_json()["sets/seen"]
    assert list(variants) == list(PROMPT_VARIANTS) and all(variant["n"] == 2 for variant in variants.values())
    assert [variants[variant]["nearer"] for variant in PROMPT_VARIANTS] == [1, 1, 0, 1], (
        "both own masks are the right one's"
    )
    assert variants["filled_box"]["same"] == pytest.approx(1, abs=1e-4) and variants["filled_box"]["other"] < 0.7


def test_without_masks_there_are_fewer_ways_and_without_other_regions_none():
    found = prompt_consistency(judge, [sample(0, LEFT, masked=False), sample(0, RIGHT, masked=False)])
    assert list(found.as_json()["sets/seen"]) == ["point", "filled_box"]
    nothing = prompt_consistency(judge, [replace(sample(0, LEFT), region=None), sample(1, LEFT)], lambda items: None)
    assert nothing.as_json() == {} and nothing.without_other_region == 1


def test_a_filled_box_is_the_box():
    assert torch.equal(box_mask(LEFT).nonzero().amin(dim=0), torch.tensor([16, 0])) and box_mask(LEFT).sum() == 32 * 24


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt_consistency")
    export(run_checkpoint(folder / "run", quickstart_spec(folder)), folder / "exported")
    return folder / "exported"


def test_the_command_asks_a_real_model(exported, tmp_path, capsys):

    def apart(pairs, rankings):
        rankings[-1].update(bbox=[10.0, 2.0, 4.0, 5.0], segmentation=rle([10, 2, 4, 5]))

    convert_scar(write_scar(tmp_path / "scar", edit=apart), tmp_path / "shards")
    arguments = [
        "--model",
        str(exported),
        "--shards",
        str(tmp_path / "shards" / "SCaR_eval_mini_val"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main([*arguments, "--kinds", "prompt_consistency", "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "out" / "robustness.json").read_text())
    (variants,) = report["neighbours"].values()
    assert {variant: row["n"] for variant, row in variants.items() if variant != "own_mask"} == {
        "point": 2,
        "mask": 2,
        "filled_box": 2,
    }
    assert report["without_other_region"] == 1 and report["tasks"] == {} and not list((tmp_path / "out").glob("*.png"))
    assert "other prompts of a region" in capsys.readouterr().out


def test_a_models_own_masks_are_those_of_its_segmentation_part(exported):
    embedder = Embedder.from_pretrained(exported, device="cpu")
    items = [item.query for item in (sample(0, LEFT), sample(0, RIGHT))]
    shown = [
        replace(item, prompt=replace(item.prompt, boxes=box[None]))
        for item, box in zip(items, (LEFT, RIGHT), strict=True)
    ]
    found = embedder.predict_masks(shown)
    batch = embedder.collator.encoder_batch(shown)
    with torch.no_grad():
        tokens = embedder.model.prompt_encoder(batch.prompts)
        expected = embedder.model.segmentation(batch.images, tokens).mask_logits > 0
    assert found is not None and torch.equal(torch.stack(found), expected)
