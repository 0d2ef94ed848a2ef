"""From SCaR's parquet files to shards: what is written, what is left out, what is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from fixtures.scar_files import HEIGHT, WIDTH, jpeg, rle, runs, write_scar
from virtue_pl.cli.commands.shards import main
from virtue_pl.data.conversion.grouped_parquet import grouped_rows
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.shards.manifest import Manifest, ShardFolder
from virtue_pl.types import VirtueError


def members(folder: Path) -> dict[str, bytes]:
    """Return every file of every tar, in order."""
    found = {}
    for path in ShardFolder.open(folder, "test").paths:
        with tarfile.open(path) as tar:
            found |= {f"{path.name}/{info.name}": tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(data) for name, data in members(folder).items() if name.endswith(".json")]


def test_one_record_is_one_image_with_all_its_rows(tmp_path: Path) -> None:
    root = write_scar(tmp_path / "scar", train=[2, 1, 3, 1, 1])
    manifests = convert_scar(root, tmp_path / "out", images_per_shard=2)
    folder = tmp_path / "out/SCAR_mini"
    files = members(folder)
    assert sorted(name.rpartition("/")[2] for name in files) == [
        f"{index:09d}.{end}" for index in range(5) for end in ("jpg", "json")
    ]
    for (name, data), record in zip(
        [item for item in files.items() if item[0].endswith(".jpg")], records(folder), strict=True
    ):
        assert data == (root / "images" / record["image"]).read_bytes(), name
    assert sorted(row["row"] for record in records(folder) for row in record["rows"]) == list(range(8))
    manifest = manifests["SCAR_mini"]
    assert (manifest.rows, manifest.images, [shard.images for shard in manifest.shards]) == (8, 5, [2, 2, 1])
    assert [len(record["rows"]) for record in records(folder)] == [
        count for shard in manifest.shards for count in shard.rows_per_image
    ]
    assert (manifest.kind, manifest.task, manifest.negatives, manifest.skipped) == ("pairs", "scar_mini", (4, 4), {})
    assert Manifest.read(folder / "manifest.json") == manifest


def test_training_rows(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1]), tmp_path / "out")
    (record,) = records(tmp_path / "out/SCAR_mini")
    (row,) = record["rows"]
    assert row["box"] == [1, 2, 5, 7] and row["target"] == "caption 0 0" and len(row["negatives"]) == 4
    assert row["mask"] == runs([1, 2, 4, 5])


def test_rankings_of_all_forms_over_one_list_of_candidates(tmp_path: Path) -> None:
    manifests = convert_scar(write_scar(tmp_path / "scar", val=[1]), tmp_path / "out")
    (record,) = records(tmp_path / "out/SCaR_eval_mini_val")
    (row,) = record["rows"]
    candidates, rankings = row["candidates"], row["rankings"]
    assert len(candidates) == len(set(candidates)) == 18
    assert [candidates[i] for i in rankings["hit@1"]] == ["caption 0 0", "both", *(f"balanced {i}" for i in range(8))]
    assert [candidates[i] for i in rankings["hit@1_published"]] == [
        "caption 0 0",
        "both",
        *(f"published {i}" for i in range(8)),
    ]
    assert [candidates[i] for i in rankings["object"]] == ["caption 0 0", "both", "published 0", "published 1"]
    assert [candidates[i] for i in rankings["scene"]] == ["caption 0 0", "published 5", "published 6", "published 7"]
    assert manifests["SCaR_eval_mini_val"].rankings == ("hit@1", "hit@1_published", "object", "relation", "scene")
    assert manifests["SCaR_eval_mini_val"].task == "scar_mini"


def test_the_published_columns_are_enough(tmp_path: Path) -> None:
    def published(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        for row in pairs:
            del row["neg_text"], row["neg_image_path"], row["segmentation"]
        for row in rankings:
            del row["tgt_text_published"], row["tgt_kinds_published"], row["segmentation"]

    manifests = convert_scar(write_scar(tmp_path / "scar", edit=published), tmp_path / "out")
    assert manifests["SCAR_mini"].rows == 6 and manifests["SCAR_mini"].negatives == (0, 0)
    assert manifests["SCaR_eval_mini_val"].rankings == ("hit@1",)
    assert all(row["mask"] is None for record in records(tmp_path / "out/SCAR_mini") for row in record["rows"])


@pytest.mark.parametrize(
    ("segmentation", "area"),
    [
        ([[1.0, 2.0, 5.0, 2.0, 5.0, 7.0, 1.0, 7.0]], 20),
        ({"size": [HEIGHT, WIDTH], "counts": [14, 4, HEIGHT * WIDTH - 18]}, 4),
    ],
)
def test_polygons_and_plain_counts_become_compressed_masks(tmp_path: Path, segmentation: Any, area: int) -> None:
    def edit(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        pairs[0]["segmentation"] = segmentation

    convert_scar(write_scar(tmp_path / "scar", train=[1], edit=edit), tmp_path / "out")
    (record,) = records(tmp_path / "out/SCAR_mini")
    assert sum(record["rows"][0]["mask"]["counts"][1::2]) == area


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another image": ({"qry_image_path": "mini_train/none.jpg"}, "missing image"),
    "no image": ({"qry_image_path": ""}, "no image"),
    "an image elsewhere": ({"qry_image_path": "../../secret.jpg"}, "no image"),
    "box outside": ({"bbox": [10.0, 2.0, 8.0, 4.0]}, "box outside the image"),
    "box of no area": ({"bbox": [10.0, 2.0, 0.0, 4.0]}, "box without area"),
    "box of nan": ({"bbox": [float("nan"), 2.0, 1.0, 4.0]}, "box outside the image"),
    "box of three": ({"bbox": [1.0, 2.0, 3.0]}, "no box"),
    "empty mask": ({"segmentation": rle([0, 0, 0, 0])}, "empty mask"),
    "mask of another size": (
        {"segmentation": coco.encode(np.ones((4, 4), dtype=np.uint8, order="F"))},
        "mask of another size",
    ),
    "mask damaged": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0~~~~~~~~zzz"}}, "damaged mask"),
    "no caption": ({"pos_text": ""}, "missing caption"),
    "no query": ({"qry": None}, "missing query"),
    "gold among negatives": ({"neg_text": ["a", "caption 0 0"]}, "gold repeated among negatives"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_training_row_is_left_out_and_named(tmp_path: Path, fault: str) -> None:
    change, reason = FAULTS[fault]
    root = write_scar(tmp_path / "scar", edit=lambda pairs, rankings: pairs[0].update(change))
    manifest = convert_scar(root, tmp_path / "out")["SCAR_mini"]
    assert manifest.rows == 5 and manifest.skipped == {reason: 1}
    assert [key for key, _ in manifest.skipped_rows] == ["SCAR_mini/0"]


RANKING_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no captions": ({"tgt_text": []}, "the query has no candidate"),
    "an empty caption": ({"tgt_text": ["caption 0 0", ""]}, "missing candidate"),
    "an empty caption of a form": ({"tgt_text_published": ["caption 0 0", ""]}, "missing caption"),
    "two golds": ({"tgt_text_published": ["another", *(str(i) for i in range(9))]}, "another gold caption"),
    "kinds of others": ({"tgt_kinds_published": ["gold"]}, "kinds do not match"),
}


@pytest.mark.parametrize("fault", RANKING_FAULTS)
def test_a_bad_evaluation_row_is_left_out_and_named(tmp_path: Path, fault: str) -> None:
    change, reason = RANKING_FAULTS[fault]
    root = write_scar(tmp_path / "scar", edit=lambda pairs, rankings: rankings[0].update(change))
    manifest = convert_scar(root, tmp_path / "out")["SCaR_eval_mini_val"]
    assert manifest.rows == 2 and manifest.skipped == {reason: 1}
    assert [key for key, _ in manifest.skipped_rows] == ["SCaR_eval_mini_val/0"]


def test_a_damaged_image_takes_its_rows_with_it(tmp_path: Path) -> None:
    root = write_scar(tmp_path / "scar", train=[2, 1])
    (root / "images/mini_train/0000.jpg").write_bytes(b"no image")
    manifest = convert_scar(root, tmp_path / "out")["SCAR_mini"]
    assert manifest.rows == 1 and manifest.skipped == {"damaged image": 2}


def test_a_box_is_clipped_by_less_than_a_pixel(tmp_path: Path) -> None:
    root = write_scar(
        tmp_path / "scar", train=[1], edit=lambda pairs, rankings: pairs[0].update(bbox=[-0.5, 2.0, WIDTH + 1.0, 4.0])
    )
    convert_scar(root, tmp_path / "out")
    assert records(tmp_path / "out/SCAR_mini")[0]["rows"][0]["box"] == [0, 2, WIDTH, 6]


def test_a_missing_column_is_one_error_that_names_those_found(tmp_path: Path) -> None:
    root = write_scar(tmp_path / "scar", edit=lambda pairs, rankings: [row.pop("bbox") for row in rankings])  # type: ignore[func-returns-value]
    with pytest.raises(
        VirtueError, match="lacks the columns bbox; it has qry_text, qry_image_path, tgt_text"
    ) as caught:
        convert_scar(root, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_no_parquet_files_at_all(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match="found neither SCaR-train"):
        convert_scar(tmp_path, tmp_path / "out")
    (tmp_path / "SCaR-train").mkdir()
    (tmp_path / "SCaR-train/SCAR_mini.parquet").write_bytes(b"none")
    with pytest.raises(VirtueError, match="is no parquet file"):
        convert_scar(tmp_path, tmp_path / "out")


def test_the_same_source_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    root = write_scar(tmp_path / "scar", train=[1] * 20)
    first, again, other = (
        convert_scar(root, tmp_path / name, seed=seed)["SCAR_mini"] for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again and first.fingerprint != other.fingerprint
    order = [record["image"] for record in records(tmp_path / "a/SCAR_mini")]
    assert order != sorted(order) and order != [record["image"] for record in records(tmp_path / "c/SCAR_mini")]


def test_what_is_finished_is_kept_and_never_mixed(tmp_path: Path) -> None:
    root, out = write_scar(tmp_path / "scar"), tmp_path / "out"
    first = convert_scar(root, out)
    written = (out / "SCAR_mini/shard-000000.tar").stat().st_mtime_ns
    assert convert_scar(root, out) == first
    assert (out / "SCAR_mini/shard-000000.tar").stat().st_mtime_ns == written
    with pytest.raises(
        VirtueError,
        match=(
            r"holds something else than shards of .*SCAR_mini.parquet with these settings: remove it, or change --out"
        ),
    ):
        convert_scar(root, out, seed=1)
    (out / "SCAR_mini/manifest.json").unlink()
    with pytest.raises(VirtueError, match="holds something else"):
        convert_scar(root, out)


def test_a_stopped_conversion_leaves_nothing_under_the_name_and_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = write_scar(tmp_path / "scar", train=[1] * 6), tmp_path / "out"

    def stop(*arguments: Any) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("virtue_pl.data.formats.scar._region", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_scar(root, out, images_per_shard=2)
    assert not (out / "SCAR_mini").exists()
    assert convert_scar(root, out, images_per_shard=2)["SCAR_mini"].rows == 6
    assert sorted(path.name for path in out.iterdir()) == ["SCAR_mini", "SCaR_eval_mini_val"]


def test_groups_are_whole_whatever_is_held_at_a_time(tmp_path: Path) -> None:
    rows = [{"by": f"image {number % 7}" if number % 5 else None, "value": number} for number in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=9)
    whole = list(grouped_rows(tmp_path / "rows.parquet", ["by", "value"], ["by"], seed=3))
    assert sorted(number for group in whole for number, _ in group) == list(range(50))
    assert len(whole) == 8 and all(len({row["by"] for _, row in group}) == 1 for group in whole)
    assert all(row["value"] == number for group in whole for number, row in group)
    for held in (1, 7, 25):
        assert (
            list(grouped_rows(tmp_path / "rows.parquet", ["by", "value"], ["by"], seed=3, rows_per_pass=held)) == whole
        )


def test_a_damaged_parquet_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"by": f"image {n % 7}", "value": n} for n in range(50)]), path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(VirtueError, match=r"rows.parquet is no parquet file"):
            list(grouped_rows(path, ["by", "value"], ["by"], seed=0))


def test_png_images_keep_their_bytes_and_name(tmp_path: Path) -> None:
    import io

    from PIL import Image

    root = write_scar(tmp_path / "scar", train=[1])
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(buffer, "PNG")
    (root / "images/mini_train/0000.jpg").write_bytes(buffer.getvalue())
    convert_scar(root, tmp_path / "out")
    assert members(tmp_path / "out/SCAR_mini")["shard-000000.tar/000000000.png"] == buffer.getvalue()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_scar(tmp_path / "scar", edit=lambda pairs, rankings: pairs[0].update(pos_text=""))
    (root / "scenes.json").write_text(json.dumps({"licences": {"stamps": "GPL-2"}}))
    assert main(["scar", "--root", str(root), "--out", str(tmp_path / "out"), "--shard-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "SCAR_mini: 5 rows of 3 images in 2 shards; left out: 1 missing caption\n" in printed
    assert "SCaR_eval_mini_val: 3 rows of 2 images in 1 shards" in printed
    assert ShardFolder.open(tmp_path / "out/SCAR_mini", "train").manifest.licence == "stamps: GPL-2"


def test_folders_that_are_no_shards_are_refused_naming_the_option(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match=r"^data\.train: .* holds no shards .* or change data\.train"):
        ShardFolder.open(tmp_path / "none", "data.train")
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "out")
    folder = tmp_path / "out/SCAR_mini"
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(VirtueError, match=r"lacks 1 of 1 shards, e.g. shard-000000.tar"):
        ShardFolder.open(folder, "train")
    (folder / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(VirtueError, match="is no manifest of shards"):
        ShardFolder.open(folder, "train")
