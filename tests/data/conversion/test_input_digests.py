"""Converting again: what has changed beside the table since is converted anew, and no more than need be."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.mmeb_files import write_mmeb
from fixtures.scar_files import jpeg, write_scar
from virtue_pl.data.conversion import input_digests as module
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.conversion.scar import SCaRFile, convert_scar
from virtue_pl.data.shards.manifest import Manifest, ShardFolder

SHARD = "shard-000000.tar"


def scar(root: Path) -> Path:
    return write_scar(root, train=[1] * 8, val=[1])


def own(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for number in range(8):
        (root / f"images/{number}.jpg").write_bytes(jpeg(number))
    rows = [
        {
            "query": "q",
            "query_image": f"{n}.jpg",
            "target": f"t{n}",
            "negatives": ["", ""],
            "negative_images": ["0.jpg", "1.jpg"],
        }
        for n in range(2, 8)
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


SOURCES: dict[str, tuple[Callable[[Path], Path], Any, str, str]] = {
    "scar": (scar, convert_scar, "SCAR_mini", "images/mini_train/0003.jpg"),
    "mmeb, a query's image": (write_mmeb, convert_mmeb, "MMEB_eval_OK_VQA", "images/shots/s1.jpg"),
    "mmeb, a candidate's image": (write_mmeb, convert_mmeb, "MMEB_eval_MSCOCO_t2i", "images/shots/s2.jpg"),
    "mmeb, a negative's image": (write_mmeb, convert_mmeb, "MMEB_MSCOCO_t2i", "images/shots/s5.jpg"),
    "own pairs, a negative's image": (own, convert_pairs, "train", "images/1.jpg"),
}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.tar")}


@pytest.mark.parametrize("source", SOURCES)
def test_an_image_that_came_changed_or_went_is_converted_anew(tmp_path: Path, source: str) -> None:
    make, convert, name, image = SOURCES[source]
    root, out = make(tmp_path / "source"), tmp_path / "out"
    convert(root, tmp_path / "whole", images_per_shard=2)
    whole = bytes_of(tmp_path / "whole" / name)
    data = (root / image).read_bytes()
    (root / image).unlink()
    without = convert(root, out, images_per_shard=2)[name]
    assert without.skipped["missing image"] and bytes_of(out / name) != whole
    assert convert(root, out, images_per_shard=2)[name] == without
    (root / image).write_bytes(data)  # it comes
    found = convert(root, out, images_per_shard=2)[name]
    assert not found.skipped and bytes_of(out / name) == whole
    assert (
        found
        == Manifest.read(out / name / "manifest.json")
        == Manifest.read(tmp_path / "whole" / name / "manifest.json")
    )
    (root / image).write_bytes(jpeg(99))  # it changes, in its length too
    convert(root, out, images_per_shard=2)
    assert jpeg(99) in b"".join(bytes_of(out / name).values())
    other = jpeg(99).replace(b"99", b"98")
    os.utime(root / image, ns=(1, 1))
    (root / image).write_bytes(other)  # it changes in place
    convert(root, out, images_per_shard=2)
    assert other in b"".join(bytes_of(out / name).values())
    (root / image).unlink()  # it goes
    assert convert(root, out, images_per_shard=2)[name].skipped["missing image"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_only_what_is_behind_the_change_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = scar(tmp_path / "scar"), tmp_path / "out"
    convert_scar(root, out, images_per_shard=2)
    (out / "SCAR_mini/features").mkdir()
    (out / "SCAR_mini/features/kept").write_text("")
    before, written = inodes(out / "SCAR_mini"), []
    write = SCaRFile.write_record

    def record(self: SCaRFile, group: Any, *arguments: Any) -> None:
        written.append(group[0][1]["qry_image_path"])
        write(self, group, *arguments)

    monkeypatch.setattr(SCaRFile, "write_record", record)
    convert_scar(root, out, images_per_shard=2)
    assert not written and inodes(out / "SCAR_mini") == before
    order = [json.loads(line)["image"] for line in json_lines(out / "SCAR_mini")]
    (root / "images" / order[5]).write_bytes(jpeg(77))
    convert_scar(root, out, images_per_shard=2)
    assert written == order[4:]
    after = inodes(out / "SCAR_mini")
    assert [name for name in sorted(before) if before[name] == after[name]] == [SHARD, "shard-000001.tar"]
    assert (out / "SCAR_mini/features/kept").is_file()
    ShardFolder.open(out / "SCAR_mini", "train")


def json_lines(folder: Path) -> list[bytes]:
    import tarfile

    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(info).read() for info in tar if info.name.endswith("json")]  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("damage", ["cut", "gone", "stranger", "journal gone"])
def test_finished_shards_are_not_believed_by_their_name(tmp_path: Path, damage: str) -> None:
    root, out = scar(tmp_path / "scar"), tmp_path / "out"
    first = convert_scar(root, out, images_per_shard=2)
    whole, folder = bytes_of(out / "SCAR_mini"), out / "SCAR_mini"
    if damage == "cut":
        (folder / SHARD).write_bytes(whole[SHARD][:-512])
    elif damage == "gone":
        (folder / "shard-000001.tar").unlink()
    elif damage == "stranger":
        (folder / "shard-000009.tar").write_bytes(b"")
    else:
        (folder / "journal.jsonl").unlink()  # a folder of an earlier version
    assert convert_scar(root, out, images_per_shard=2) == first and bytes_of(folder) == whole


def test_other_rules_or_tables_of_ours_are_other_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = scar(tmp_path / "scar"), tmp_path / "out"
    convert_scar(root, out)
    before = inodes(out / "SCAR_mini")
    with monkeypatch.context() as patched:
        patched.setattr(module, "CONVERSION", module.CONVERSION + 1)
        convert_scar(root, out)
    after = inodes(out / "SCAR_mini")
    assert before != after
    monkeypatch.setattr(SCaRFile, "side_inputs", "another meta-task")
    convert_scar(root, out)
    assert inodes(out / "SCAR_mini") != after


def test_a_stopped_conversion_does_not_go_on_behind_images_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = scar(tmp_path / "scar")
    convert_scar(root, tmp_path / "whole", images_per_shard=2)
    order = [json.loads(line)["image"] for line in json_lines(tmp_path / "whole/SCAR_mini")]
    data = (root / "images" / order[1]).read_bytes()
    (root / "images" / order[1]).unlink()
    write, left = SCaRFile.write_record, [6]

    def stop(self: SCaRFile, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(SCaRFile, "write_record", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_scar(root, tmp_path / "out", images_per_shard=2)
    assert list((tmp_path / "out/.SCAR_mini.partial").glob("*.tar"))
    (root / "images" / order[1]).write_bytes(data)
    convert_scar(root, tmp_path / "out", images_per_shard=2)
    assert bytes_of(tmp_path / "out/SCAR_mini") == bytes_of(tmp_path / "whole/SCAR_mini")


def test_a_zip_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    root = scar(tmp_path / "scar")
    images = {path: path.read_bytes() for path in sorted((root / "images/mini_train").glob("*.jpg"))}
    for path in images:
        path.unlink()

    def pack(count: int) -> None:
        with zipfile.ZipFile(root / "images.zip", "w") as archive:
            for path, data in list(images.items())[:count]:
                archive.writestr(f"images/mini_train/{path.name}", data)

    for count in (5, 8):
        pack(count)
        assert convert_scar(root, tmp_path / "out")["SCAR_mini"].rows == count
