"""Rankings of one's own: `virtue-pl eval` and `robustness` on folders of shards and of rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.evaluation_files import predictions, report
from fixtures.own_files import CAPTIONED, pairs, rankings, write_rankings, write_rows
from fixtures.tiny_release import published, quickstart_spec, run_checkpoint
from virtue_pl.cli.main import main
from virtue_pl.data.datamodules.own import OwnDataModule
from virtue_pl.data.eval_sets.own import rank_all_answers
from virtue_pl.data.streaming.options import ReaderOptions
from virtue_pl.embedder import Embedder
from virtue_pl.types import EmbeddingInput, EvaluationRow

CPU = ("--accelerator", "cpu", "--devices", "1")
SQUARE_BOX = [0.2, 0.2, 0.6, 0.7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    spec = quickstart_spec(folder)
    spec["init_args"]["evaluation_modes"] = ["box", "no_prompt"]
    return run_checkpoint(folder / "run", spec)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rankings(tmp_path_factory.mktemp("rows") / "own")


@pytest.fixture(scope="module")
def shards(rows: Path) -> Path:
    assert main(["shards", "pairs", "--root", str(rows), "--out", str(rows.parent / "shards")]) == 0
    return rows.parent / "shards"


def evaluate(model: Path, data: Path, out: Path, *options: str) -> int:
    return main(["eval", "--model", str(model), "--data", str(data), "--out", str(out), *CPU, *options])


def scores(out: Path, name: str = "own/test") -> dict[str, list[float]]:
    return {row["key"]: row["scores"] for row in predictions(out) if row["task"] == name}


def test_shards_rows_and_one_folder_are_ranked_alike(model, rows, shards, tmp_path, capsys):
    found = {}
    for name, data in (("shards", shards), ("rows", rows), ("test", shards / "test")):
        assert evaluate(model, data, tmp_path / name) == 0
        found[name] = scores(tmp_path / name)
    assert found["shards"] == found["rows"] == found["test"] and len(found["test"]) == len(rankings())
    shown = capsys.readouterr().out
    assert "own, % ± standard error" in shown and "chance" in shown
    sets = report(tmp_path / "shards")["sets"]
    assert {name: one["n"] for name, one in sets.items()} == {"test": 6, "val": 2}
    assert report(tmp_path / "test")["sets"].keys() == {"test"}
    assert evaluate(model, shards, tmp_path / "one", "--sets", "test") == 0
    assert scores(tmp_path / "one") == found["test"] and report(tmp_path / "one")["sets"].keys() == {"test"}


def test_every_kind_of_query_and_candidate_is_what_the_embedder_embeds(model, rows, shards, tmp_path):
    """Boxes, masks, points, two images and candidates with prompts: the same cosines from Python."""
    assert evaluate(model, shards, tmp_path / "run", "--sets", "test") == 0
    found = scores(tmp_path / "run")
    data = OwnDataModule(str(shards), reader=ReaderOptions())
    embedder = Embedder.from_pretrained(model)
    data.connect(embedder.collator)
    ranked = {sample.key.rpartition("/")[2]: sample for batch in data.test_dataloader() for sample in batch.samples}
    assert data.skip_summary() == "no bad samples" and len(ranked) == len(rankings())
    for number, sample in ranked.items():
        batch = embedder.collator.collate_eval([sample])
        query = embedder.embed([batch_query(sample)])
        expected = (embedder.embed(list(sample.candidates)) @ query[0]).tolist()
        assert batch.modes[0] in ("box", "no_prompt")
        assert found[f"test/{number}"] == pytest.approx(expected, abs=1e-5), number


def batch_query(sample: Any) -> EmbeddingInput:
    from virtue_pl.preprocessing.contrastive_collator import evaluation_query

    return evaluation_query(sample, "box")


def test_a_release_ranks_them_too_and_names_a_row_that_it_cannot_read(rows, tmp_path, capsys):
    model = published(tmp_path / "release")
    assert evaluate(model, rows, tmp_path / "out") == 1
    assert "test row 3: not for this model: " in capsys.readouterr().err.splitlines()[-1]
    assert evaluate(model, rows, tmp_path / "out", "--allow-missing", "--robustness", "3") == 0
    assert "1 not for this model" in capsys.readouterr().out
    found = report(tmp_path / "out")
    assert found["sets"]["test"]["n"] == 5
    assert all(torch.isfinite(torch.tensor(row)).all() for row in scores(tmp_path / "out").values())


def test_all_answers_are_candidates_on_request(model, rows, shards, tmp_path):
    assert evaluate(model, shards, tmp_path / "all", "--sets", "test", "--candidates", "all") == 0
    lengths = {len(row) for row in scores(tmp_path / "all").values()}
    assert lengths == {4}  # three captions and the disc's own image, whoever's they are
    pair_rows = write_rows(tmp_path / "pairs", pairs(), "test")
    assert evaluate(model, pair_rows, tmp_path / "pairs_out", "--candidates", "all") == 0
    assert {len(row) for row in scores(tmp_path / "pairs_out").values()} == {len(CAPTIONED)}


def test_the_right_answer_comes_first_among_all():
    answers = ["a", "b", "a", "c"]
    row = [
        EvaluationRow("s", 0, "", "", "", None, None, None, (EmbeddingInput(text),), {"hit@1": (0,)})
        for text in answers
    ]
    found = rank_all_answers(row)
    assert [one.candidates[one.rankings["hit@1"][0]].text for one in found] == answers
    assert {tuple(candidate.text for candidate in one.candidates) for one in found} == {("a", "b", "c")}
    assert all(sorted(one.rankings["hit@1"]) == [0, 1, 2] for one in found)


def test_rows_that_are_left_out_stand_in_the_report(model, tmp_path, capsys):
    bad = {"image": "gone.png", "text": "what?", "candidates": ["a", "b"]}
    data = write_rows(tmp_path / "rows", [*rankings(), bad, {"text": "what?", "candidates": []}], "test")
    assert evaluate(model, data, tmp_path / "out") == 1
    assert "test: 2 of 8 queries are not in the shards" in capsys.readouterr().err
    assert evaluate(model, data, tmp_path / "out", "--allow-missing") == 0
    shown = capsys.readouterr().out
    assert "missing image" in shown and report(tmp_path / "out")["sets"]["test"]["n"] == 6


@pytest.mark.parametrize("kind", ["shards", "rows"])
def test_rows_without_candidates_are_told_what_is_expected(kind, model, tmp_path, capsys):
    data = write_rows(tmp_path / "rows", pairs(), "test")
    if kind == "shards":
        assert main(["shards", "pairs", "--root", str(data), "--out", str(tmp_path / "shards")]) == 0
        data = tmp_path / "shards"
    assert evaluate(model, data, tmp_path / "out") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "`candidates` of each row, the right one first" in last and "--candidates all" in last


def test_what_is_no_set_is_one_line(model, shards, tmp_path, capsys):
    said = {}
    (tmp_path / "empty").mkdir()
    shutil.copytree(shards / "train", tmp_path / "trained" / "train")
    for name, data, options in (
        ("typo", shards, ["--sets", "tset"]),
        ("nowhere", tmp_path / "nowhere", []),
        ("empty", tmp_path / "empty", []),
        ("pairs", tmp_path / "trained", []),
    ):
        assert evaluate(model, data, tmp_path / "out", *options) == 1
        said[name] = capsys.readouterr().err.splitlines()[-1]
    assert "--sets tset: no such set" in said["typo"] and "did you mean test?" in said["typo"]
    assert "there is no such folder" in said["nowhere"] and "found no data, expected *.jsonl" in said["empty"]
    assert "holds shards of training pairs (train), but evaluation ranks" in said["pairs"]


def test_a_changed_file_is_ranked_anew(model, tmp_path):
    data = write_rows(tmp_path / "rows", rankings()[:2], "test")
    assert evaluate(model, data, tmp_path / "out") == 0 and len(scores(tmp_path / "out")) == 2
    write_rows(data, rankings()[:3], "test")
    assert evaluate(model, data, tmp_path / "out") == 0 and len(scores(tmp_path / "out")) == 3


def test_robustness_of_ones_own(model, rows, shards, tmp_path, capsys):
    found = {}
    options = ["--device", "cpu", "--no-plots", "--kinds", "box_jitter", "click_offset", "mask_erosion"]
    for name, data in (("rows", rows), ("folder", shards), ("test", shards / "test")):
        named = ["--model", str(model), "--shards", str(data), "--out", str(tmp_path / name)]
        assert main(["robustness", *named, *options]) == 0
        found[name] = json.loads((tmp_path / name / "robustness.json").read_text())
    assert found["rows"]["tasks"] == found["folder"]["tasks"] and found["folder"]["tasks"].keys() == {
        "test/test",
        "val/val",
    }
    tasks = found["test"]["tasks"]["test/test"]
    assert tasks.keys() == found["rows"]["tasks"]["test/test"].keys() and found["test"]["without_region"] == 3
    counts = {kind: {level["n"] for level in one["levels"]} for kind, one in tasks.items()}
    assert counts == {"box_jitter": {2}, "click_offset": {3}, "mask_erosion": {1}}
    neutral = [level for one in tasks.values() for level in one["levels"] if level["level"] == one["neutral"]]
    assert all(level["cosine"] == pytest.approx(1, abs=1e-5) for level in neutral)
