"""Conversions that stop, share the work, read zips, and meet archives that must not be trusted; and own pairs."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from fixtures.mmeb_files import vqa_pair, write_mmeb, write_table
from fixtures.official_files import MMEB, write_official_mmeb
from fixtures.scar_files import HEIGHT, WIDTH, jpeg, png_of, rle, runs, write_scar
from virtue_pl.cli.commands.shards import main
from virtue_pl.data.conversion import own_table, source_file
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.conversion.scar import SCaRFile, convert_scar
from virtue_pl.data.conversion.source_file import Settings
from virtue_pl.data.datamodules.pairs import PairDataModule
from virtue_pl.data.io import archives
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.writer import JOURNAL, ShardWriter
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import DataError, VirtueError


def content(folder: Path) -> dict[str, str]:
    """Return every file's checksum, those of unfinished work too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stop_after(monkeypatch: pytest.MonkeyPatch, groups: int) -> list[int]:
    """Conversions stop at that group, as if they were killed; how many groups were begun."""
    begun: list[int] = []
    write = SCaRFile.write_record

    def killed(self: SCaRFile, *arguments: Any) -> None:
        begun.append(len(begun))
        if len(begun) > groups:
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(SCaRFile, "write_record", killed)
    return begun


def scar(root: Path) -> Path:
    """Return twelve images, of which the rows of two cannot be used."""

    def spoil(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        pairs[2]["bbox"] = [90.0, 90.0, 5.0, 5.0]
        pairs[7]["pos_text"] = ""

    return write_scar(root, train=[1] * 12, val=[1], edit=spoil)


@pytest.mark.parametrize("groups", range(0, 12, 2))
def test_a_stopped_conversion_goes_on_and_ends_as_if_it_had_not_been_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    root = scar(tmp_path / "scar")
    whole = convert_scar(root, tmp_path / "whole", images_per_shard=2)
    with monkeypatch.context() as patched:
        stop_after(patched, groups)
        with pytest.raises(KeyboardInterrupt):
            convert_scar(root, tmp_path / "out", images_per_shard=2)
    assert not (tmp_path / "out/SCAR_mini").exists()
    kept = len(list((tmp_path / "out/.SCAR_mini.partial").glob("*.tar")))
    with monkeypatch.context() as patched:
        begun = stop_after(patched, 99)
        assert convert_scar(root, tmp_path / "out", images_per_shard=2) == whole
    assert len(begun) <= 13 - 2 * max(0, kept - 1) and content(tmp_path / "out") == content(tmp_path / "whole")
    assert sum(whole["SCAR_mini"].skipped.values()) == 2


def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a source and its half-written shards."""
    root = scar(tmp_path / "scar")
    with monkeypatch.context() as patched:
        stop_after(patched, 7)
        with pytest.raises(KeyboardInterrupt):
            convert_scar(root, tmp_path / "out", images_per_shard=2)
    return root, tmp_path / "out/.SCAR_mini.partial"


def test_damaged_half_written_shards_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, partial = half(tmp_path, monkeypatch)
    (partial / "shard-000001.tar").write_bytes((partial / "shard-000001.tar").read_bytes()[:-512] + b"x" * 512)
    (partial / JOURNAL).write_text((partial / JOURNAL).read_text()[:-9])
    (partial / "stray").mkdir()
    convert_scar(root, tmp_path / "out", images_per_shard=2)
    convert_scar(root, tmp_path / "whole", images_per_shard=2)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_half_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, partial = half(tmp_path, monkeypatch)
    before = content(partial)
    with pytest.raises(VirtueError, match=r"holds half of something else, .* remove it, or change --out"):
        convert_scar(root, tmp_path / "out", images_per_shard=3)
    assert content(partial) == before


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path / "out", 2, "source"),
        pytest.raises(VirtueError, match="is being written by another process"),
    ):
        ShardWriter(tmp_path / "out", 2, "source")


def test_several_processes_write_what_one_writes(tmp_path: Path) -> None:
    root = write_mmeb(tmp_path / "mmeb", first={"pos_text": "", "pos_image_path": ""})
    done: list[int] = []

    class Count:
        def __init__(self, name: str, rows: int) -> None:
            assert (name, rows) == ("4 files", 32)

        def __enter__(self) -> Any:
            return done.append

        def __exit__(self, *error: Any) -> None: ...

    one, two = convert_mmeb(root, tmp_path / "one"), convert_mmeb(root, tmp_path / "two", workers=2, progress=Count)  # type: ignore[arg-type]
    assert one == two and content(tmp_path / "one") == content(tmp_path / "two") and sum(done) == 32


@pytest.mark.parametrize("kind", ["train", "val"])
def test_several_processes_write_one_file_as_one_writes_it(tmp_path: Path, kind: str) -> None:
    def spoil(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        pairs[11]["bbox"] = [90.0, 90.0, 5.0, 5.0]
        rankings[5]["tgt_text"] = ["alone"]

    root = write_scar(tmp_path / "scar", train=[2] * 20, val=[1, 3] * 4, edit=spoil)
    for folder in ("SCaR-train", "SCaR-eval"):
        if (kind == "train") != (folder == "SCaR-train"):
            shutil.rmtree(root / folder)
    done: list[int] = []

    class Count:
        def __init__(self, name: str, rows: int) -> None:
            self.rows = rows

        def __enter__(self) -> Any:
            return done.append

        def __exit__(self, *error: Any) -> None:
            assert error[0] is not None or sum(done) == self.rows

    one = convert_scar(root, tmp_path / "one", images_per_shard=3)
    assert convert_scar(root, tmp_path / "three", images_per_shard=3, workers=3, progress=Count) == one  # type: ignore[arg-type]
    assert content(tmp_path / "three") == content(tmp_path / "one") and done
    assert sum(sum(manifest.skipped.values()) for manifest in one.values()) == 1


class KilledAt:
    """A progress that ends the process, which can do nothing about it, once so many rows are done."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def __call__(self, name: str, rows: int) -> KilledAt:
        return self

    def __enter__(self) -> Any:
        return self.advance

    def __exit__(self, *error: Any) -> None: ...

    def advance(self, rows: int) -> None:
        self.left -= rows
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("rows", "workers"), [(1, 1), (7, 2), (11, 1)])
def test_a_killed_conversion_goes_on_with_any_number_of_processes(tmp_path: Path, rows: int, workers: int) -> None:
    root = scar(tmp_path / "scar")
    shutil.rmtree(root / "SCaR-eval")
    whole = convert_scar(root, tmp_path / "whole", images_per_shard=2)
    options: Any = {"images_per_shard": 2, "progress": KilledAt(rows)}
    killed = multiprocessing.get_context("fork").Process(
        target=convert_scar, args=(root, tmp_path / "out"), kwargs=options
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".SCAR_mini.partial"]
    assert convert_scar(root, tmp_path / "out", images_per_shard=2, workers=workers) == whole
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_zipped_images_give_the_same_shards_as_unpacked_ones(tmp_path: Path) -> None:
    dataset = next(dataset for number, dataset in enumerate(MMEB) if dataset.train_folder and number % 2)
    root = write_official_mmeb(tmp_path / "zipped", [dataset])
    archive = root / "MMEB-train/images_zip" / f"{dataset.train_folder}.zip"
    assert archive.is_file() and not (root / "MMEB-train/images").exists()
    convert_mmeb(root, tmp_path / "a")
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(root / "MMEB-train")
    archive.unlink()
    convert_mmeb(root, tmp_path / "b")
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    assert {name for name in first if first[name] != second[name]} == {
        name for name in first if name.endswith(JOURNAL) and "MMEB_eval" not in name and "instruct" not in name
    }  # it says what the images' files were


def archive(path: Path, members: dict[str, bytes], mode: int = 0) -> ImageFiles:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, data, zipfile.ZIP_DEFLATED)
    return ImageFiles.find(path.parents[1])


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "images/../../a.jpg", "C:\\a.jpg", "..\\a.jpg"])
def test_an_archive_with_a_member_outside_is_not_read(tmp_path: Path, name: str) -> None:
    images = archive(tmp_path / "images_zip/x.zip", {"b.jpg": jpeg(), name: jpeg()})
    with pytest.raises(VirtueError, match="would lie outside the folder: the archive is not read"):
        images.read("b.jpg", "key")


def test_an_archive_with_a_link_is_not_read(tmp_path: Path) -> None:
    images = archive(tmp_path / "images_zip/x.zip", {"a.jpg": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    with pytest.raises(VirtueError, match="is a link: the archive is not read"):
        images.read("a.jpg", "key")


def test_an_archive_of_too_many_members_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    images = archive(tmp_path / "images_zip/x.zip", {f"{number}.jpg": jpeg() for number in range(4)})
    with pytest.raises(VirtueError, match="has 4 members, more than 3"):
        images.read("1.jpg", "key")


def test_a_member_that_grows_or_is_damaged_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 10_000)
    images = archive(tmp_path / "images_zip/x.zip", {"zeros.jpg": bytes(20_000), "a.jpg": jpeg(1), "empty.jpg": b""})
    with pytest.raises(DataError, match=r"image too large: zeros\.jpg claims 20,000 bytes, more than 10,000"):
        images.read("zeros.jpg", "key")
    with pytest.raises(DataError, match="empty image"):
        images.read("empty.jpg", "key")
    with pytest.raises(DataError, match=r"missing image: .*none\.jpg \(No such file or directory, nor in 1 archives\)"):
        images.read("none.jpg", "key")
    assert images.read("images/a.jpg", "key") == jpeg(1)
    path = tmp_path / "images_zip/x.zip"
    path.write_bytes(path.read_bytes().replace(zlib.compress(jpeg(1))[10:40], bytes(30)))
    with pytest.raises(DataError, match=r"damaged archive member: a\.jpg in "):
        ImageFiles.find(tmp_path).read("a.jpg", "key")
    path.write_bytes(b"no zip")
    with pytest.raises(VirtueError, match="is no zip that can be read"):
        ImageFiles.find(tmp_path).read("a.jpg", "key")


SPOILT = {
    "image too large": png_of(30_000, 30_000),
    "empty image": b"",
    "AppleDouble leftover": b"\0\5\x16\7 what macOS leaves",
    "damaged image": b"no image",
}


@pytest.mark.parametrize("reason", SPOILT)
def test_bad_images_are_left_out_by_reason(tmp_path: Path, reason: str) -> None:
    root = write_mmeb(tmp_path / "mmeb")
    (root / "images/shots/s1.jpg").write_bytes(SPOILT[reason])
    assert convert_mmeb(root, tmp_path / "out")["MMEB_OK_VQA"].skipped == {reason: 2}


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    root = write_mmeb(tmp_path / "mmeb")
    (root / "images/shots/s1.jpg").unlink()
    (root / "images/shots/s1.jpg").symlink_to(tmp_path / "secret.jpg")
    assert convert_mmeb(root, tmp_path / "out")["MMEB_OK_VQA"].skipped == {"no image": 2}


def test_instructions_apart_of_a_dataset_that_nobody_knows(tmp_path: Path) -> None:
    row = {name: "" for name in ("qry_inst", "qry_text", "qry_img_path", "tgt_inst", "tgt_text", "tgt_img_path")}
    write_table(tmp_path / "MMEB-eval/New/test-00000-of-00001.parquet", [row])
    with pytest.raises(
        VirtueError, match="how mmeb_New joins them is not known: give it in MMEB-eval's one-string form"
    ):
        convert_mmeb(tmp_path, tmp_path / "out")


OWN = [
    {
        "query": "the left one",
        "query_image": "a.jpg",
        "target": "a dog",
        "negatives": ["a cat", "a cow"],
        "bbox": [1, 2, 5, 4],
        "segmentation": rle([1, 2, 5, 4]),
    },
    {"query": "a dog", "target_image": "b.jpg"},
    {"query": "the left one", "query_image": "a.jpg", "target": "a hen", "bbox": [1, 2, 500, 4]},
    {"query": "nothing"},
    {"query": "no image", "target": "a dog", "bbox": [1, 2, 5, 4]},
]
RANKED = [
    {"query_image": "a.jpg", "candidates": ["a dog", "a cat"]},
    {"query": "b", "candidates": ["", ""], "candidate_images": ["b.jpg", "a.jpg"]},
]


def own(root: Path, **lines: list[dict[str, Any]]) -> Path:
    for number, name in enumerate("ab"):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / f"images/{name}.jpg").write_bytes(jpeg(number))
    for name, rows in lines.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_own_pairs_become_samples_with_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_table, "ROWS_PER_WRITE", 2)
    root = own(tmp_path / "own", train=OWN, test=RANKED)
    write_table(root / "more.parquet", [{"query": "what?", "query_image": "a.jpg", "target": "a dog"}])
    made = convert_pairs(root, tmp_path / "out", licence="mine")
    assert {name: (manifest.kind, manifest.rows, manifest.licence) for name, manifest in made.items()} == {
        "more": ("pairs", 1, "mine"),
        "test": ("rankings", 2, "mine"),
        "train": ("pairs", 2, "mine"),
    }
    assert made["train"].skipped == {"box outside the image": 1, "missing target": 1, "region without an image": 1}
    data = PairDataModule(str(tmp_path / "out/train"), test={"own": str(tmp_path / "out/test")}, batch_size=2)

    class Keep:
        def collate_train(self, samples: Any) -> Any:
            return list(samples)

        collate_eval = collate_train

    data.connect(Keep())  # type: ignore[arg-type]
    samples = {sample.key: sample for batch in data.train_dataloader() for sample in batch}
    pointed = samples["train/0"]
    assert pointed.region.box.tolist() == pytest.approx([1 / WIDTH, 2 / HEIGHT, 6 / WIDTH, 6 / HEIGHT])
    assert int(pointed.region.mask.sum()) == 20 and [item.text for item in pointed.negatives] == []
    assert samples["train/1"].region is None and len(samples["train/1"].target.images) == 1
    ranked = [sample for batch in data.test_dataloader() for sample in batch]
    assert sorted((sample.key, len(sample.candidates), len(sample.candidates[0].images)) for sample in ranked) == [
        ("test/0", 2, 0),
        ("test/1", 2, 1),
    ]


def test_a_mask_in_json_lines_is_kept(tmp_path: Path) -> None:
    convert_pairs(own(tmp_path / "own", train=OWN[:1]), tmp_path / "out")
    text = (tmp_path / "out/train/shard-000000.tar").read_bytes().decode(errors="replace")
    assert json.dumps(runs([1, 2, 5, 4]), separators=(",", ":")) in text


def test_mistakes_about_own_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match=r"found no data, expected \*\.jsonl, \*\.csv, \*\.parquet"):
        convert_pairs(tmp_path, tmp_path / "out")
    write_table(tmp_path / "a.parquet", [vqa_pair(0)])
    with pytest.raises(VirtueError, match=r"a\.parquet: unknown column: 'qry', did you mean query\?"):
        convert_pairs(tmp_path, tmp_path / "out")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(VirtueError, match="another file has the same name, a,"):
        convert_pairs(tmp_path, tmp_path / "out")
    with pytest.raises(VirtueError, match=r"--images .*none: there is no such folder"):
        convert_scar(write_scar(tmp_path / "scar"), tmp_path / "out", images=[str(tmp_path / "none")])


def test_the_command_for_own_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = own(tmp_path / "own", train=OWN)
    (root / "images").rename(tmp_path / "elsewhere")
    command = ["pairs", "--root", str(root), "--out", str(tmp_path / "out"), "--images", str(tmp_path / "elsewhere")]
    assert main(command) == 1 and main([*command, "--max-left-out", "0.6"]) == 0
    assert "train: 2 rows of 2 images in 1 shards; left out: 1 box outside the image" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["pairs", "--root", str(root), "--out", str(tmp_path / "out"), "--workers", "0"])


def test_settings_are_spelled_in_fingerprints_as_in_folders_written_before() -> None:
    settings = Settings(images_per_shard=7, seed=3, licence="CC0", max_pixels=9)
    assert settings.fingerprint_text == "Settings(pictures_per_shard=7, seed=3, licence='CC0', max_pixels=9)"


def test_shards_of_an_earlier_version_or_other_libraries_are_not_taken_for_todays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The earlier source of the same table and settings is written again, any other is refused."""
    root, out = write_scar(tmp_path / "scar", train=[1], val=[1]), tmp_path / "out"
    convert_scar(root, out)
    before = content(out)
    path = out / "SCAR_mini" / "manifest.json"
    table = next((root / "SCaR-train").rglob("*.parquet"))
    settings = Settings(100, 0, "CC-BY-NC-4.0", MAX_PIXELS)
    checksum = hashlib.sha256(table.read_bytes()).hexdigest()
    earlier = hashlib.sha256(f"virtue_pl shards 1 {checksum} {settings.fingerprint_text}".encode()).hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": earlier}))
    convert_scar(root, out)
    assert content(out) == before and "of an earlier version: they are written again" in capsys.readouterr().out
    monkeypatch.setattr(source_file, "library_versions", lambda names: dict.fromkeys(names, "0.1"))
    with pytest.raises(VirtueError, match="holds something else than shards of"):
        convert_scar(root, out)
