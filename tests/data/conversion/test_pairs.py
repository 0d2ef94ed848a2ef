"""One's own data to shards: every form alike, every fault named, sound rows unchanged beside any others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fixtures.own_files import (
    CAPTIONED,
    FORMS,
    HEIGHT,
    INSTRUCTION,
    RUNS,
    SQUARE,
    WIDTH,
    embedded,
    mask_png,
    pairs,
    png,
    save_to_disk,
    shard_bytes,
    stored_rows,
    write_images,
    write_rows,
)
from virtue_pl.data.conversion.own_sources import find_sources
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.formats.own_rows import RowOptions
from virtue_pl.types import VirtueError

FAULTS = Path(__file__).parents[2] / "fixtures/own_faults.jsonl"
OPTIONS = RowOptions(instruction=INSTRUCTION)
BESIDE = {"image": "0.png", "text": "what", "target": "a disc", "bbox": [10, 8, 20, 20]}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_shards(tmp_path: Path, form: str) -> None:
    convert_pairs(write_rows(tmp_path / "rows", pairs()), tmp_path / "a")
    FORMS[form](tmp_path / "form")
    made = convert_pairs(tmp_path / "form", tmp_path / "b", row_options=OPTIONS)
    assert list(made) == ["train"] and made["train"].rows == len(CAPTIONED)
    assert shard_bytes(tmp_path / "b/train") == shard_bytes(tmp_path / "a/train")
    again = convert_pairs(tmp_path / "form", tmp_path / "b", row_options=OPTIONS)
    assert again == made and not (tmp_path / "b/.train.partial").exists()


def test_boxes_and_masks_of_coco_are_those_of_rows(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "target": "disc", "bbox": [10, 8, 20, 20], "segmentation": [SQUARE]}]
    convert_pairs(write_rows(tmp_path / "rows", rows, "instances"), tmp_path / "a")
    root = write_images(tmp_path / "coco")
    annotation = {"id": 1, "image_id": 0, "bbox": [10, 8, 20, 20], "segmentation": [SQUARE], "category_id": 4}
    content = {"images": [{"id": 0, "file_name": "0.png"}], "categories": [{"id": 4, "name": "disc"}]}
    notes = [annotation, {**annotation, "image_id": 9}, {**annotation, "category_id": 9}, 3]
    (root / "instances.json").write_text(json.dumps({**content, "annotations": notes}))
    made = convert_pairs(root, tmp_path / "b")["instances"]
    assert shard_bytes(tmp_path / "a/instances") == shard_bytes(tmp_path / "b/instances")
    assert made.skipped == {"image of no entry": 1, "missing target": 1, "no object": 1}


def test_images_inside_of_rows_are_told_apart_by_content(tmp_path: Path) -> None:
    images = [{"bytes": png(0), "path": "a.png"}, {"bytes": png(1), "path": "a.png"}, {"bytes": png(0), "path": None}]
    images += [{"bytes": png(2), "path": "/home/me/../x.png"}, {"bytes": b"", "path": "a.png"}]
    rows = [{"image": image, "target": str(number)} for number, image in enumerate(images)]
    tmp_path.joinpath("own/images").mkdir(parents=True)
    (tmp_path / "own/images/a.png").write_bytes(png(5))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own/train.parquet")
    made = convert_pairs(tmp_path / "own", tmp_path / "out")["train"]
    shards = b"".join(shard_bytes(tmp_path / "out/train"))
    assert [shards.count(png(number)) for number in (0, 1, 2, 5)] == [2, 1, 1, 0]
    assert made.rows == 4 and sum(made.skipped.values()) == 1


def faults() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FAULTS.read_text(encoding="utf-8").splitlines()]


LEFT_OUT = {
    "empty polygon": "damaged mask: polygon of 0 values",
    "one click": "damaged mask: polygon of 2 values",
    "empty beside a sound one": "damaged mask: polygon of 0 values",
    "points as pairs": "damaged mask",
    "points as dicts": "damaged mask",
    "runs too short": "damaged mask: its run lengths add up to 150",
    "no runs": "damaged mask: its run lengths add up to 0",
    "negative run": "damaged mask",
    "null coordinate": "damaged mask",
    "huge coordinate": "mask outside the image",
    "NaN coordinate": "damaged mask",
    "normalised box": "units not stated",
    "unknown column": "unknown column: 'box', did you mean boxes?",
}
CONVERTED = ("sound polygon", "sound run lengths", "segmentation without a box")
ROWS = [row for row in faults() if "plain.jpg" in row["query_image"] and "word twice" not in row["query"]]


def name_of(row: dict[str, Any]) -> str:
    return str(row["query"].partition("(")[2].removesuffix(")"))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_each_fault_leaves_out_its_row_and_no_other(tmp_path: Path, row: dict[str, Any]) -> None:
    own = {**row, "query_image": "0.png"}
    made = convert_pairs(write_rows(tmp_path / "own", [BESIDE, own]), tmp_path / "out")["train"]
    rows = stored_rows(tmp_path / "out/train")
    assert rows[0]["box"] == [10.0, 8.0, 30.0, 28.0]
    if name_of(row) in CONVERTED:
        assert rows[1]["mask"] == RUNS and rows[1]["box"] == [10, 8, 30, 28] and not made.skipped
    else:
        ((key, problem),) = made.skipped_rows
        assert key == "train/1" and problem.startswith(LEFT_OUT[name_of(row)])
        assert problem.endswith("(train.jsonl, line 2)") and list(rows) == [0]


def test_all_faults_together_leave_the_sound_rows(tmp_path: Path) -> None:
    made = convert_pairs(
        write_rows(tmp_path / "own", [{**row, "query_image": "0.png"} for row in ROWS]), tmp_path / "o"
    )
    assert made["train"].rows == len(CONVERTED) and sum(made["train"].skipped.values()) == len(LEFT_OUT)


def test_numbers_as_texts_are_refused_by_column_and_type(tmp_path: Path) -> None:
    root = write_images(tmp_path / "own")
    table = pa.table({"query": [1], "query_image": ["0.png"], "target": pa.array([3], pa.int64())})
    pq.write_table(table, root / "train.parquet")
    made = convert_pairs(root, tmp_path / "out")["train"]
    assert made.skipped_rows == (
        ("train/0", "query of another type: found 1 (int), expected a text (train.parquet, row 0)"),
    )


def test_a_table_with_an_unknown_column_is_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "own")
    pq.write_table(pa.Table.from_pylist([{**BESIDE, "id": 3, "mask": None}]), root / "train.parquet")
    with pytest.raises(VirtueError, match=r"train\.parquet: unknown column: 'id'; --ignore-column id leaves it out"):
        convert_pairs(root, tmp_path / "out")
    with pytest.raises(VirtueError, match=r"unknown column: 'mask', did you mean masks\?"):
        convert_pairs(root, tmp_path / "out", row_options=RowOptions(ignored_columns=("id",)))
    ignored = RowOptions(ignored_columns=("id", "mask"))
    assert convert_pairs(root, tmp_path / "out", row_options=ignored)["train"].rows == 1


LINES = b'{"query": "a", "target": "b"}\n\n{"query"\n[1]\n{"query": "\xff", "target": "b"}\n' + b"[" * 100_000 + b"\n"


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    made = convert_pairs(tmp_path, tmp_path / "out")["train"]
    assert made.rows == 1 and made.skipped == {"no JSON": 3, "no object": 1}
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_bytes(b'query,target\na,b\n\na\n"a\nb",c\n\xff,d\n')
    made = convert_pairs(tmp_path, tmp_path / "csv")["train"]
    assert made.rows == 2 and made.skipped == {"cells do not match": 1, "query is no Unicode": 1}
    assert any(problem.endswith("(train.csv, line 4)") for _, problem in made.skipped_rows)


def test_a_mask_in_a_file_and_clicks_are_stored(tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "points": [[20, 18], [1, 1]], "labels": [1, 0], "target": "a"},
        {"image": "0.png", "masks": "mask.png", "target": {"text": "b", "image": "1.png", "points": [[3, 4]]}},
        {"images": ["0.png", "1.png"], "target": "c"},
    ]
    convert_pairs(write_rows(tmp_path / "own", rows), tmp_path / "out")
    found = stored_rows(tmp_path / "out/train")
    assert found[0]["prompt"] == {"points": [[20, 18], [1, 1]], "labels": [1, 0]} and "box" not in found[0]
    assert found[1]["mask"] == RUNS and found[1]["target"] == ["b", 1, {"points": [[3, 4]], "labels": [1]}]
    assert found[2]["query"] == ["", [0, 1]]
    before = shard_bytes(tmp_path / "out/train")
    (tmp_path / "own/images/mask.png").write_bytes(mask_png((255, 0)))
    convert_pairs(tmp_path / "own", tmp_path / "out")  # the mask's file is an input, as images are
    assert shard_bytes(tmp_path / "out/train") != before


def test_mistakes_about_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match=r"found no data, expected \*\.jsonl, \*\.csv"):
        find_sources(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(VirtueError, match=r"a\.jsonl has no row"):
        convert_pairs(tmp_path, tmp_path / "out")
    (tmp_path / "a.csv").write_text("text,text\n")
    with pytest.raises(VirtueError, match="another file has the same name, a,"):
        find_sources(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(VirtueError, match="expected a name for each column, none of them twice"):
        convert_pairs(tmp_path, tmp_path / "out")
    (tmp_path / "a.csv").unlink()
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / "a.arrow").write_bytes(b"no Arrow")
    with pytest.raises(VirtueError, match=r"a\.arrow is no Arrow file, or a damaged one"):
        convert_pairs(tmp_path, tmp_path / "out")


NUMBERS = st.one_of(st.integers(-9, 60), st.floats(), st.none(), st.text(max_size=2), st.booleans())
VECTORS = st.lists(st.one_of(NUMBERS, st.lists(NUMBERS, max_size=7)), max_size=5)
ODD = st.fixed_dictionaries(
    {"image": st.sampled_from(["0.png", "none.png", "../0.png", "mask.png", 3]), "target": st.text(max_size=3)},
    optional={
        "boxes": VECTORS,
        "box_format": st.sampled_from(["xyxy", "xywh", "odd"]),
        "units": st.sampled_from(["pixels", "normalised"]),
        "points": VECTORS,
        "labels": st.lists(NUMBERS, max_size=3),
        "masks": st.one_of(
            VECTORS,
            st.sampled_from(["mask.png", "0.png", "none.png", "."]),
            st.fixed_dictionaries(
                {"size": st.sampled_from([[HEIGHT, WIDTH], [2], None]), "counts": st.text(max_size=9)}
            ),
            st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]), "counts": VECTORS}),
        ),
        "negatives": st.lists(st.one_of(st.text(max_size=2), NUMBERS), max_size=2),
        "candidates": st.none(),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ODD, min_size=1, max_size=4))
def test_sound_rows_are_unchanged_beside_any_others(odd: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_rows(root / "own", [BESIDE, *odd, BESIDE])
        made = convert_pairs(root / "own", root / "out")["train"]
        rows = stored_rows(root / "out/train")
        assert made.rows + sum(made.skipped.values()) == len(odd) + 2 == len(made.skipped_rows) + len(rows)
        sound = {
            "query": ["what", 0],
            "target": ["a disc", None],
            "negatives": [],
            "box": [10, 8, 30, 28],
            "mask": None,
        }
        for number in (0, len(odd) + 1):
            found = rows[number]
            assert {**found, "query": [found["query"][0], 0]} == {"row": number, **sound}
        shutil.rmtree(root / "out")


def test_what_a_folder_holds_beside_its_tables_is_not_guessed_at(tmp_path: Path) -> None:
    root = write_rows(tmp_path / "own", pairs())
    for number in range(3):
        (root / f"images/{number}.txt").write_text("a caption")
    (root / "notes.json").write_text('{"query": 1}\n{"query": 2}\n')
    (root / "metadata.jsonl").write_text('{"query": "a", "target": "b"}\n')
    assert [(source.name, source.form) for source in find_sources(root)] == [("metadata", "text"), ("train", "text")]
    (root / "annotations.json").write_text('{"annotations": [')
    with pytest.raises(VirtueError, match=r"annotations\.json is no JSON that can be read"):
        find_sources(root)


def test_a_name_that_comes_twice_is_no_value(tmp_path: Path) -> None:
    """A column given twice is told: one of its values would be taken in silence."""
    root = write_images(tmp_path / "own")
    lines = [
        '{"image": "0.png", "target": "a", "target": "b"}',
        '{"image": "0.png", "target": {"text": "a", "text": ""}}',
    ]
    (root / "train.jsonl").write_text("\n".join([*lines, '{"image": "0.png", "target": "a"}']))
    made = convert_pairs(root, tmp_path / "out")["train"]
    assert made.rows == 1 and made.skipped == {"given twice": 2}
    (root / "train.jsonl").unlink()
    columns = [pa.array(["0.png"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "target", "target"]), root / "train.parquet")
    with pytest.raises(VirtueError, match=r"it has the column 'target' 2 times, expected once"):
        convert_pairs(root, tmp_path / "parquet")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"target": "red"}, "target is not the first candidate"),
        ({"target": "blue"}, "target is not the first candidate"),
        ({"negatives": ["red"]}, "negatives beside candidates"),
        ({"target": "green", "negatives": ["blue"]}, ""),
        ({}, ""),
    ],
)
def test_a_ranking_takes_no_answer_but_its_candidates(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    root = write_rows(tmp_path / "own", [{"image": "0.png", "candidates": ["green", "blue"], **row}], "test")
    made = convert_pairs(root, tmp_path / "out")["test"]
    assert made.skipped == ({reason: 1} if reason else {})


@pytest.mark.parametrize("split", ["../../elsewhere", "a/b", "..", ".hidden", "a\nb", "x" * 201, "\\", "\ud800"])
def test_rows_are_written_into_the_folder_that_was_asked_for(tmp_path: Path, split: str) -> None:
    save_to_disk(tmp_path / "own", embedded(), split)
    with pytest.raises(VirtueError, match="expected the name of a folder"):
        convert_pairs(tmp_path / "own", tmp_path / "in/out")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize(
    "state", ["[]", "3", '{"_data_files": 3}', '{"_data_files": [3]}', "{", '[["_data_files", []]]']
)
def test_a_damaged_state_is_one_line(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(VirtueError, match=r"state\.json is damaged|has no row"):
        convert_pairs(tmp_path, tmp_path / "out")


def test_tables_of_which_a_part_is_missing_are_refused(tmp_path: Path) -> None:
    FORMS["parts on the hub"](tmp_path / "own")
    part = tmp_path / "own/data/train-00001-of-00002.parquet"
    part.rename(tmp_path / "part")
    with pytest.raises(VirtueError, match=r"one of 2 parts, of which 1 are there \(00001 is missing\)"):
        find_sources(tmp_path / "own")
    (tmp_path / "part").rename(part.with_name("train-00001-of-00003.parquet"))
    with pytest.raises(VirtueError, match="of which 2 are there"):
        find_sources(tmp_path / "own")
    save_to_disk(tmp_path / "saved", embedded())
    state = json.loads((tmp_path / "saved/state.json").read_text())
    (tmp_path / "saved/state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(VirtueError, match=r"after flatten_indices\(\)"):
        find_sources(tmp_path / "saved")


def coco(root: Path, **image: Any) -> Path:
    """Write a box of COCO's over an image of which the file says more."""
    write_images(root)
    notes = [
        {"id": 1, "image_id": 0, "bbox": [10, 8, 20, 20], "caption": "disc"},
        {"id": 2, "image_id": 0, "caption": "all"},
    ]
    content = {"images": [{"id": 0, "file_name": "0.png", **image}], "annotations": notes}
    (root / "train.json").write_text(json.dumps(content))
    return root


def test_boxes_of_an_image_of_another_size_are_left_out(tmp_path: Path) -> None:
    """They are in the pixels of the image that was annotated: before it was resized, or turned by its EXIF data."""
    sizes = {"a": {"width": 50, "height": 40}, "b": {"width": 100, "height": 80}, "c": {"width": 40, "height": 50}}
    odd = {"d": {"width": None}, "e": {"width": 0, "height": 0}, "f": {"width": "50", "height": 10**30}}
    for name, size in {**sizes, **odd}.items():
        made = convert_pairs(coco(tmp_path / name, **size), tmp_path / "out" / name)["train"]
        assert made.skipped == ({"image of another size": 1} if name in "bc" else {}), name
        assert made.rows == (1 if name in "bc" else 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"images": [{"id": 0, "file_name": "0.png"}, {"id": 0, "file_name": "1.png"}]},
            "have the id 0, '0.png' and '1.png'",
        ),
        ({"images": "abc"}, r"images is 'abc' \(str\), expected a list"),
        ({"images": 5}, "images is 5"),
        ({"images": {"a": 1}}, "expected a list of objects"),
        ({"images": [3]}, r"3 \(int\) is among images, expected an id and file_name"),
        ({"images": [{"id": [1], "file_name": "0.png"}]}, "expected an id and file_name"),
        ({"images": [], "categories": [{"id": 1}]}, "among categories, expected an id and name"),
    ],
)
def test_a_damaged_file_of_coco_is_one_line(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"annotations": [{"id": 1, "image_id": 0}], **content}))
    with pytest.raises(VirtueError, match=message):
        convert_pairs(tmp_path, tmp_path / "out")


def test_captions_of_any_image_and_of_one(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.tif", "c.gif", "d.TIFF"):
        Image.new("RGB", (50, 40)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    made = convert_pairs(tmp_path, tmp_path.with_name(f"{tmp_path.name} out"))["train"]
    assert made.rows == 3 and made.skipped == {"images of one name": 1}


def test_metadata_says_one_caption(tmp_path: Path) -> None:
    write_images(tmp_path, ".")
    rows: list[dict[str, Any]] = [{"text": "a"}, {"caption": "b", "text": None}, {"caption": None, "text": "c"}]
    rows += [{"text": "d", "caption": "e"}, {"text": "f", "target": "g"}, {"text": "h", "image": "1.png"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"file_name": "0.png", **row}) + "\n" for row in rows))
    out = tmp_path.with_name(f"{tmp_path.name} out")
    assert convert_pairs(tmp_path, out)["train"].skipped == {"given twice": 2}
    assert {number: row["target"][0] for number, row in stored_rows(out / "train").items()} == {
        0: "a",
        1: "b",
        2: "c",
        4: "g",
    }


def test_a_blank_text_is_none(tmp_path: Path) -> None:
    rows = [{"text": "a", "target": " \t"}, {"text": "\n", "target": "a"}, {"text": "a", "target": " b "}]
    made = convert_pairs(write_rows(tmp_path / "own", rows), tmp_path / "out")["train"]
    assert made.skipped == {"missing target": 1, "missing query": 1}
    assert stored_rows(tmp_path / "out/train")[2]["target"] == [" b ", None]
