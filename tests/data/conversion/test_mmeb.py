"""From MMEB's parquet files to shards: what is written, what is left out, what is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fixtures.mmeb_files import SHOWN, vqa_ranking, write_mmeb, write_table
from virtue_pl.cli.commands.shards import main
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.formats.catalogue import mmeb_sets
from virtue_pl.data.scenes.mmeb.tasks import TASKS
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.types import VirtueError


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the json of every record, with the number of images beside it."""
    found: dict[str, dict[str, Any]] = {}
    for path in ShardFolder.open(folder, "test").paths:
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, end = info.name.partition(".")
                record = found.setdefault(key, {"members": 0})
                if end == "json":
                    record |= json.loads(tar.extractfile(info).read())  # type: ignore[union-attr]
                else:
                    record["members"] += 1
    return list(found.values())


def test_every_dataset_becomes_folders_with_its_meta_task(tmp_path: Path) -> None:
    manifests = convert_mmeb(write_mmeb(tmp_path / "mmeb"), tmp_path / "out")
    assert sorted(manifests) == ["MMEB_MSCOCO_t2i", "MMEB_OK_VQA", "MMEB_eval_MSCOCO_t2i", "MMEB_eval_OK_VQA"]
    train, test = manifests["MMEB_OK_VQA"], manifests["MMEB_eval_OK_VQA"]
    assert (train.kind, train.task, train.meta_task, train.rows, train.negatives) == (
        "pairs",
        "mmeb_OK_VQA",
        "vqa",
        8,
        (0, 0),
    )
    assert (test.kind, test.task, test.meta_task, test.rows, test.rankings) == (
        "rankings",
        "mmeb_OK_VQA",
        "vqa",
        8,
        ("hit@1",),
    )
    assert manifests["MMEB_MSCOCO_t2i"].meta_task == "retrieval" and manifests["MMEB_MSCOCO_t2i"].negatives == (2, 2)
    assert {task.name: task.meta_task for task in TASKS}.items() <= {
        name: dataset.meta_task for name, dataset in mmeb_sets().items()
    }.items()


def test_rows_share_a_record_where_they_share_an_image(tmp_path: Path) -> None:
    convert_mmeb(write_mmeb(tmp_path / "mmeb"), tmp_path / "out")
    of_questions = records(tmp_path / "out/MMEB_OK_VQA")
    assert [len(record["rows"]) for record in of_questions] == [2] * 4 and {
        record["members"] for record in of_questions
    } == {1}
    (of_captions,) = records(tmp_path / "out/MMEB_eval_MSCOCO_t2i")
    assert len(of_captions["rows"]) == 8 and of_captions["members"] == of_captions["pictures"] == 4
    for record in records(tmp_path / "out/MMEB_MSCOCO_t2i"):
        assert record["members"] == 3 * len(record["rows"])


def test_stored_rows_have_mmebs_own_texts(tmp_path: Path) -> None:
    convert_mmeb(write_mmeb(tmp_path / "mmeb"), tmp_path / "out")
    (row,) = [row for record in records(tmp_path / "out/MMEB_OK_VQA") for row in record["rows"] if row["row"] == 3]
    question = "<|image_1|>\nRepresent the given image with the following question: What is 3?\n"
    assert (row["query"], row["target"], row["negatives"]) == ([question, 0], ["answer 3\n", None], [])
    (record,) = records(tmp_path / "out/MMEB_eval_MSCOCO_t2i")
    (row,) = [row for row in record["rows"] if row["row"] == 2]
    assert row["query"][1] is None and [text for text, _ in row["candidates"]] == [SHOWN] * 4
    assert sorted(number for _, number in row["candidates"]) == row["rankings"]["hit@1"] == [0, 1, 2, 3]


FAULTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "no query": (
        {"qry": "", "qry_image_path": "", "qry_text": None, "qry_img_path": None},
        dict.fromkeys(("pairs", "rankings"), "missing query"),
    ),
    "no target": ({"pos_text": "", "pos_image_path": ""}, {"pairs": "missing target"}),
    "another image": (
        {"qry_image_path": "images/none.jpg", "qry_img_path": "none.jpg"},
        dict.fromkeys(("pairs", "rankings"), "missing image"),
    ),
    "an image elsewhere": ({"qry_image_path": "../../secret.jpg"}, {"pairs": "no image"}),
    "a token alone": ({"pos_text": "<|image_1|> x", "pos_image_path": ""}, {"pairs": "image token without an image"}),
    "no candidate": ({"tgt_text": [], "tgt_img_path": []}, {"rankings": "the query has no candidate"}),
    "an empty candidate": ({"tgt_text": ["a", ""], "tgt_img_path": ["", ""]}, {"rankings": "missing candidate"}),
    "two lengths": ({"tgt_text": ["a", "b", "c"], "tgt_img_path": ["", ""]}, {"rankings": "candidates do not match"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_is_left_out_and_named(tmp_path: Path, fault: str) -> None:
    change, reasons = FAULTS[fault]
    for manifest in convert_mmeb(write_mmeb(tmp_path / "mmeb", first=change), tmp_path / "out").values():
        if manifest.kind in reasons:
            assert (manifest.rows, manifest.skipped) == (7, {reasons[manifest.kind]: 1})
            assert [key for key, _ in manifest.skipped_rows] == [f"{manifest.name}/0"]


def test_a_target_among_the_negatives_is_left_out(tmp_path: Path) -> None:
    manifests = convert_mmeb(
        write_mmeb(tmp_path / "mmeb", first={"pos_image_path": "images/shots/s1.jpg"}), tmp_path / "out"
    )
    assert manifests["MMEB_MSCOCO_t2i"].skipped == {"target repeated among negatives": 1}


@pytest.mark.parametrize(
    ("texts", "ranked"), [(["a", "b", "b", "c"], [0, 1, 2, 3]), (["a", "b", "a", "c"], [0, 1, 3]), (["a"], [0])]
)
def test_candidates_stay_as_they_are_and_the_right_one_is_ranked_once(
    tmp_path: Path, texts: list[str], ranked: list[int]
) -> None:
    change = {"tgt_text": texts, "tgt_img_path": [""] * len(texts)}
    convert_mmeb(write_mmeb(tmp_path / "mmeb", first=change), tmp_path / "out")
    (row,) = [row for record in records(tmp_path / "out/MMEB_eval_OK_VQA") for row in record["rows"] if row["row"] == 0]
    assert [text for text, _ in row["candidates"]] == texts and row["rankings"] == {"hit@1": ranked}


def test_a_dataset_that_no_table_knows_and_one_in_several_files(tmp_path: Path) -> None:
    root = write_mmeb(tmp_path / "mmeb")
    for number in range(2):
        write_table(root / f"MMEB-eval/New-Set/test-0000{number}-of-00002.parquet", [vqa_ranking(0), vqa_ranking(1)])
    manifests = convert_mmeb(root, tmp_path / "out")
    assert {name: manifest.meta_task for name, manifest in manifests.items() if "New" in name} == {
        "MMEB_eval_New_Set_00000": "other",
        "MMEB_eval_New_Set_00001": "other",
    }


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match="found neither MMEB-train/DATASET/original-"):
        convert_mmeb(tmp_path, tmp_path / "out")
    write_table(tmp_path / "MMEB-train/X/original-00000-of-00001.parquet", [{"qry": "a"}])
    with pytest.raises(VirtueError, match="lacks the columns qry_image_path, pos_text, pos_image_path; it has qry"):
        convert_mmeb(tmp_path, tmp_path / "out")


def test_what_is_finished_is_kept_and_never_mixed(tmp_path: Path) -> None:
    root, out = write_mmeb(tmp_path / "mmeb"), tmp_path / "out"
    first = convert_mmeb(root, out)
    assert convert_mmeb(root, out) == first
    with pytest.raises(VirtueError, match="holds something else than shards of"):
        convert_mmeb(root, out, seed=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mmeb(tmp_path / "mmeb", first={"pos_text": "", "pos_image_path": ""})
    assert main(["mmeb", "--root", str(root), "--out", str(tmp_path / "out"), "--licence", "free"]) == 0
    printed = capsys.readouterr().out
    assert "MMEB_OK_VQA: 7 rows of 4 images in 1 shards; left out: 1 missing target\n" in printed
    assert ShardFolder.open(tmp_path / "out/MMEB_OK_VQA", "train").manifest.licence == "free"
    assert (
        main(["mmeb", "--root", str(root), "--out", str(tmp_path / "other"), "--train-split", "diverse_instruction"])
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["MMEB_eval_MSCOCO_t2i", "MMEB_eval_OK_VQA"]
