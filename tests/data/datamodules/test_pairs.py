"""Own pairs as samples: clicks, several boxes and prompts on answers reach the batch that the model is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.own_files import HEIGHT, WIDTH, write_rows
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.datamodules.pairs import PairDataModule, split_prompts
from virtue_pl.preprocessing.contrastive_collator import evaluation_query, input_id, point_at
from virtue_pl.preprocessing.prompts import prompt_region
from virtue_pl.preprocessing.region_collator import mirror_region
from virtue_pl.types import RankingSample, Sample

CLICKS = [[20, 18], [1, 1]]
RIGHT = {"text": "the same one", "image": "1.png", "points": [[3, 4]]}
WRONG = {"text": "the same one", "image": "1.png", "points": [[40, 4]]}
ROWS: list[dict[str, Any]] = [
    {"image": "0.png", "points": CLICKS, "labels": [1, 0], "target": "clicks"},
    {"image": "0.png", "bbox": [10, 8, 20, 20], "target": "a box"},
    {"image": "0.png", "bbox": [10, 8, 20, 20], "points": CLICKS, "labels": [1, 0], "target": "both"},
    {"image": "0.png", "boxes": [[1, 2, 5, 6], [20, 1, 30, 4]], "box_format": "xyxy", "target": "two boxes"},
    {"image": "0.png", "masks": "mask.png", "points": CLICKS, "labels": [1, 0], "target": "a mask"},
    {"images": ["0.png", "1.png"], "points": CLICKS, "target": RIGHT, "negatives": [WRONG]},
]


class Keep:
    """A collator that gives samples back."""

    def collate_train(self, samples: Any) -> Any:
        return list(samples)

    collate_eval = collate_train


def read(folder: Path) -> dict[str, Any]:
    """Return the training samples and the queries of evaluation by their keys."""
    data = PairDataModule(str(folder / "train"), val=str(folder / "val"), batch_size=len(ROWS), eval_batch_size=1)
    data.connect(Keep())  # type: ignore[arg-type]
    loaders: list[Any] = [data.train_dataloader(), data.val_dataloader()]
    return {sample.key: sample for loader in loaders for batch in loader for sample in batch}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{**row, "negatives": [WRONG]} for row in ROWS]
    write_rows(folder / "own", rows)
    ranked = {name: value for name, value in ROWS[0].items() if name != "target"}
    write_rows(folder / "own", [{**ranked, "candidates": [RIGHT, WRONG, "other"]}], "val")
    convert_pairs(folder / "own", folder / "out")
    return read(folder / "out")


def pixels(values: torch.Tensor) -> list[list[float]]:
    """Return normalised points or boxes in pixels."""
    return (values * torch.tensor([WIDTH, HEIGHT]).repeat(values.shape[1] // 2)).round(decimals=3).tolist()


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_row_with_points_is_trained_on_by_its_own_points(samples: dict[str, Any], number: int) -> None:
    sample: Sample = samples[f"train/{number}"]
    for _ in range(2):
        prompt = point_at(sample.query, sample.region, "point", None).prompt
        assert pixels(prompt.points) == CLICKS and prompt.point_labels.tolist() == [1, 0]
        assert not len(prompt.boxes) and not len(prompt.masks)


def test_a_row_with_a_box_alone_falls_back_to_a_click_in_it(samples: dict[str, Any]) -> None:
    prompt = prompt_region(samples["train/1"].region, "point", torch.Generator().manual_seed(0))
    ((x, y),) = pixels(prompt.points)
    assert 15 <= x <= 25 and 13 <= y <= 23 and prompt.point_labels.tolist() == [1]


def test_modes_of_rows_that_lack_one(samples: dict[str, Any]) -> None:
    clicks, both, two, mask = (prompt_region(samples[f"train/{number}"].region, "box") for number in (0, 2, 3, 4))
    assert pixels(clicks.points) == CLICKS and not len(clicks.boxes)
    assert pixels(both.boxes) == [[10, 8, 30, 28]] and not len(both.points)
    assert pixels(two.boxes) == [[1, 2, 5, 6], [20, 1, 30, 4]]
    assert pixels(mask.boxes) == [[10, 8, 30, 28]]
    assert prompt_region(samples["train/4"].region, "mask").masks.sum() == 400
    assert prompt_region(samples["train/0"].region, "none").is_empty


def test_the_box_of_points_is_around_the_inside_ones(samples: dict[str, Any]) -> None:
    assert pixels(samples["train/0"].region.box[None]) == [[18, 16, 22, 20]]


def test_clicks_are_mirrored_with_their_image(samples: dict[str, Any]) -> None:
    mirrored = mirror_region(samples["train/0"].region)
    assert pixels(prompt_region(mirrored, "point").points) == [[30, 18], [49, 1]]


def test_a_query_of_evaluation_is_pointed_at_by_its_own_points(samples: dict[str, Any]) -> None:
    sample: RankingSample = samples["val/0"]
    assert pixels(evaluation_query(sample, "point").prompt.points) == CLICKS
    assert evaluation_query(sample, "no_prompt").prompt.is_empty
    right, wrong, other = sample.candidates
    assert pixels(right.prompt.points) == [[3, 4]] and pixels(wrong.prompt.points) == [[40, 4]]
    assert len({input_id(right), input_id(wrong), input_id(other)}) == 3 and sample.rankings == {"hit@1": (0, 1, 2)}


def test_answers_have_prompts_and_queries_several_images(samples: dict[str, Any]) -> None:
    sample: Sample = samples["train/5"]
    assert len(sample.query.images) == 2 and pixels(prompt_region(sample.region, "point").points)[0] == CLICKS[0]
    assert pixels(sample.target.prompt.points) == [[3, 4]] and sample.target.text == "the same one"


def test_stored_prompts_are_split_from_rows_of_any_shape() -> None:
    prompts, fields = split_prompts({"query": ["q", 0], "target": ["a", 0, {"points": []}], "negatives": [["b", None]]})
    assert prompts == {0: {"points": []}} and fields["target"] == ["a", 0] and fields["negatives"] == [["b", None]]
    assert split_prompts({"candidates": None}) == ({}, {"candidates": None})
