from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as rle

from virtue_pl.cli.commands.scenes import main
from virtue_pl.data.scenes import SceneConfig, write_scenes, writer
from virtue_pl.data.scenes.layout import RELATIONS
from virtue_pl.data.scenes.staging import VISIBLE
from virtue_pl.data.scenes.tables.scar_rows import QUERY
from virtue_pl.types import VirtueError

CONFIG = SceneConfig(source="shapes", train=6, val=5, test=4, size=128, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(CONFIG, out)
    return out


def contents(root: Path) -> dict[str, bytes]:
    """Everything that should not depend on how it was written."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))} | {
        str(path.relative_to(root)): json.dumps(pq.read_table(path).to_pylist()).encode()
        for path in sorted(root.rglob("*.parquet"))
    }


def test_layout_and_columns(root: Path) -> None:
    train = pq.read_table(root / "SCaR-train/SCAR_mini.parquet")
    assert train.column_names == [
        *("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"),
        *("bbox", "segmentation", "category", "image_id"),
    ]
    assert train.num_rows == 12
    assert set(train["qry"].to_pylist()) == {QUERY}
    for split, count in (("val", 5), ("test_seen", 4), ("test_held_out", 4)):
        rows = pq.read_table(root / f"SCaR-eval/SCaR_eval_mini_{split}.parquet").to_pylist()
        assert len(rows) == count
        for row in rows:
            assert row["qry_text"] == QUERY and len(row["tgt_text"]) == len(row["tgt_text_published"]) == 10
            assert row["tgt_text"][0] == row["tgt_text_published"][0]
            assert row["tgt_kinds_published"] == ["gold", *["object"] * 3, *["relation"] * 3, *["scene"] * 3]
            assert row["background_in_train"] == (split == "val")
    manifest = json.loads((root / "scenes.json").read_text())
    assert manifest["finished"] and manifest["samples"] == {"train": 12, "val": 5, "test_seen": 4, "test_held_out": 4}
    assert not (root / ".parts").exists()


def test_masks_fit_their_boxes_and_images(root: Path) -> None:
    for row in pq.read_table(root / "SCaR-train/SCAR_mini.parquet").to_pylist():
        with Image.open(root / "images" / row["qry_image_path"]) as image:
            assert image.size == (128, 128) and row["segmentation"]["size"] == [128, 128]
        encoded = {"size": row["segmentation"]["size"], "counts": row["segmentation"]["counts"].encode()}
        assert rle.toBbox(encoded).tolist() == row["bbox"]
        assert rle.area(encoded) >= 16


def test_captions_are_whole_and_the_target_is_named(root: Path) -> None:
    for row in pq.read_table(root / "SCaR-train/SCAR_mini.parquet").to_pylist():
        assert row["category"] in row["pos_text"]
        assert sum(f" {relation} a" in row["pos_text"] for relation in RELATIONS) == 1
        assert len(set(row["neg_text"]) | {row["pos_text"]}) == 11


def test_held_out_targets_are_never_in_training(root: Path) -> None:
    train = set(pq.read_table(root / "SCaR-train/SCAR_mini.parquet")["category"].to_pylist())
    held_out = set(pq.read_table(root / "SCaR-eval/SCaR_eval_mini_test_held_out.parquet")["category"].to_pylist())
    assert train and held_out and not train & held_out


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_thing_is_visible_and_stands_out(root: Path) -> None:
    assert VISIBLE >= 0.8
    for row in pq.read_table(root / "SCaR-eval/SCaR_eval_mini_test_seen.parquet").to_pylist():
        mask = rle.decode(
            {"size": row["segmentation"]["size"], "counts": row["segmentation"]["counts"].encode()}
        ).astype(bool)
        with Image.open(root / "images" / row["qry_image_path"]) as image:
            pixels = np.asarray(image, dtype=float)
        assert np.abs(pixels[mask].mean(axis=0) - pixels[~mask].mean(axis=0)).max() > 5


def test_workers_blocks_and_stops_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK", 2)
    write_block, written = writer.write_block, []

    def failing(block: writer.Block, *rest: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        write_block(block, *rest)  # type: ignore[arg-type]
        written.append(block)

    monkeypatch.setattr(writer, "write_block", failing)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(CONFIG, tmp_path / "set")
    assert not json.loads((tmp_path / "set/scenes.json").read_text())["finished"]
    monkeypatch.setattr(writer, "write_block", write_block)
    first = tmp_path / "set/images/mini_train/00000000.jpg"
    first.touch()
    before = first.stat().st_mtime_ns
    write_scenes(CONFIG, tmp_path / "set", workers=2)
    assert first.stat().st_mtime_ns == before
    assert contents(tmp_path / "set") == contents(root)


def test_a_finished_set_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "load_library", lambda config: pytest.fail("nothing is to be composed"))
    assert write_scenes(CONFIG, root)["finished"]


def test_scenes_of_other_libraries_or_of_an_earlier_format_are_composed_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(root, tmp_path / "set"))
    before = writer.fingerprint(CONFIG)
    monkeypatch.setattr(writer, "library_versions", lambda names: dict.fromkeys(names, "0.1"))
    assert writer.fingerprint(CONFIG) != before
    image = next(path for path in out.rglob("*") if path.suffix in (".png", ".jpg"))
    image.write_bytes(b"of another library")
    assert write_scenes(CONFIG, out)["finished"] and "composed again" in capsys.readouterr().out
    assert image.read_bytes() == (root / image.relative_to(out)).read_bytes()
    content = json.loads((out / "scenes.json").read_text())
    del content["libraries"]
    (out / "scenes.json").write_text(json.dumps({**content, "fingerprint": "of an earlier format"}))
    assert write_scenes(CONFIG, out)["libraries"] and "composed again" in capsys.readouterr().out
    assert write_scenes(CONFIG, out)["finished"] and "composed again" not in capsys.readouterr().out


def test_other_settings_and_strange_folders_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match="seed 3, wanted 4"):
        write_scenes(SceneConfig(source="shapes", train=6, val=5, test=4, size=128, seed=4), root)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(VirtueError, match="not empty"):
        write_scenes(CONFIG, tmp_path)
    with pytest.raises(VirtueError, match="virtue-pl fetch images"):
        write_scenes(SceneConfig(cache=str(tmp_path / "none")), tmp_path / "new")


@pytest.mark.parametrize("settings", [{"source": "photos"}, {"train": -1}, {"size": 10}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(VirtueError):
        SceneConfig(**settings)  # type: ignore[arg-type]


def test_the_command_writes_the_same(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert (
        main(
            [
                "--source",
                "shapes",
                "--train",
                "6",
                "--val",
                "5",
                "--test",
                "4",
                "--size",
                "128",
                "--seed",
                "3",
                "--workers",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert contents(out) == contents(root)
