"""The doctor: every fault is named by set, row and path, in official folders and in shards; what is sound is called
sound.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from fixtures.mmeb_files import write_mmeb, write_table
from fixtures.official_files import MMEB, ROWS, SCAR, write_official_mmeb, write_official_scar
from fixtures.scar_files import HEIGHT, WIDTH, jpeg, png_of, rle, write_scar
from fixtures.shard_files import seal
from virtue_pl.cli.commands import doctor
from virtue_pl.cli.commands.doctor import main
from virtue_pl.cli.left_out import left_out_table
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.doctor.checks import Checkup, Finding, count_words, power_of_two
from virtue_pl.data.doctor.contact_sheet import ContactSheet, tile
from virtue_pl.data.doctor.examine import count_errors, examine, to_json
from virtue_pl.data.doctor.image_hashes import difference_hash, find_lookalikes
from virtue_pl.data.shards.manifest import Manifest, ShardFolder
from virtue_pl.data.shards.webdataset import wds
from virtue_pl.data.streaming.options import BadSampleLimits, SamplingOptions
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.preprocessing.images import MAX_PIXELS, decode
from virtue_pl.types import DataError, VirtueError

OPTIONS: dict[str, Any] = {"max_pixels": MAX_PIXELS}


def kinds(checkup: Checkup) -> dict[str, int]:
    found = [finding.kind for finding in checkup.findings]
    return {kind: found.count(kind) for kind in found}


def photograph(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), quality: int = 95) -> bytes:
    """Return an image of coloured patches, which looks like itself at any size."""
    patches = np.random.default_rng(seed).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((144, 128), Image.Resampling.NEAREST).resize(size, Image.Resampling.BOX).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return all sets; of each folder of images one file is gone, one is cut off."""
    root = write_official_scar(write_official_mmeb(tmp_path_factory.mktemp("spoilt"), MMEB))
    shutil.rmtree(root / "MMEB_Test_Instruct")  # its images and rows are MMEB-eval's
    for archive in sorted((root / "MMEB-train/images_zip").glob("*.zip")):
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(root / "MMEB-train", [name for name in zipped.namelist() if name.startswith("images")])
        archive.unlink()
    folders = {path.parent for path in root.rglob("*.jpg")}
    assert len(folders) == 20 + 36 + 10
    for number, folder in enumerate(sorted(folders)):
        for index, role in enumerate(("", "query", "target")):
            if (folder / f"{role}0.jpg").is_file():
                (folder / f"{role}0.jpg").unlink()
                (folder / f"{role}1.jpg").write_bytes(photograph(3 * number + index)[:-60])  # its header is whole
    return root


def test_every_set_with_bad_images_is_told_of_in_its_official_folder(spoilt: Path) -> None:
    found = {checkup.name: checkup for checkup in examine([spoilt], **OPTIONS)}
    assert len(found) == 20 + 36 + 10
    for name, checkup in found.items():
        # where every row shows the missing one, no row is left to look at
        usable = {"damaged image"} if checkup.rows else set()
        assert kinds(checkup).keys() == {"missing image"} | usable, name
        missing = next(finding for finding in checkup.findings if finding.kind == "missing image")
        assert missing.key.startswith(f"{name}/") and "0.jpg" in missing.detail
        assert not usable or any(f"{name} (" in finding.key and "1.jpg" in finding.key for finding in checkup.findings)
    assert sum(bool(checkup.rows) for checkup in found.values()) >= 20 + 20 + 10


def test_several_processes_find_what_one_finds(spoilt: Path) -> None:
    def examine_with(workers: int) -> Any:
        sheet = ContactSheet()
        written = to_json(examine([spoilt], workers=workers, on_finding=sheet.add, **OPTIONS))
        return written, [(exhibit.finding, exhibit.tile.tobytes()) for exhibit in sheet.exhibits]

    one = examine_with(1)
    assert examine_with(2) == one and one[0]["findings"] and one[1]


def test_every_set_with_bad_images_is_streamed_and_told_of_in_its_shards(spoilt: Path, tmp_path: Path) -> None:
    manifests = convert_mmeb(spoilt, tmp_path) | convert_scar(spoilt, tmp_path)
    found = {checkup.name: checkup for checkup in examine([tmp_path], **OPTIONS)}
    named = 0
    for name, manifest in manifests.items():
        assert manifest.skipped["missing image"] >= 1 and set(kinds(found[name])) <= {"damaged image"}
        if not manifest.rows:
            continue
        named += bool(found[name].findings)
        data, samples = streamed(tmp_path / name, manifest)
        assert all("1.jpg" in key or "/1" in key for key in data.skipped)
        assert samples and bool(data.skipped) == bool(found[name].findings), name
    assert named >= 20 + 10 + 10 + 10


BAD_IMAGES: dict[str, bytes] = {
    "empty image": b"",
    "AppleDouble leftover": b"\x00\x05\x16\x07" + bytes(40),
    "damaged image": b"no image at all",
    "image too large": png_of(30_000, 30_000),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_every_set_is_told_of_for_every_kind_of_bad_image(tmp_path: Path, kind: str) -> None:
    root = write_official_scar(write_official_mmeb(tmp_path, MMEB))
    shutil.rmtree(root / "MMEB_Test_Instruct")
    for archive in sorted((root / "MMEB-train/images_zip").glob("*.zip")):
        with zipfile.ZipFile(archive) as zipped:
            sound = {name: zipped.read(name) for name in zipped.namelist() if name.startswith("images")}
        with zipfile.ZipFile(archive, "w") as zipped:
            for name, data in sound.items():
                zipped.writestr(name, BAD_IMAGES[kind] if name.endswith("2.jpg") else data)
    for path in root.rglob("*2.jpg"):
        path.write_bytes(BAD_IMAGES[kind])
    found = examine([root], **OPTIONS)
    assert len(found) == 20 + 36 + 10
    for checkup in found:
        assert kinds(checkup).keys() == {kind}, checkup.name
        assert all(
            "2.jpg" in finding.key + finding.image + finding.detail and finding.key.startswith(checkup.name)
            for finding in checkup.findings
        )


@pytest.fixture(scope="module")
def sound_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Manifest]]:
    """Return all sets as shards."""
    folder = tmp_path_factory.mktemp("sound")
    root = write_official_scar(write_official_mmeb(folder / "official", MMEB))
    shutil.rmtree(root / "MMEB_Test_Instruct")
    return folder / "shards", convert_mmeb(root, folder / "shards") | convert_scar(root, folder / "shards")


DAMAGES: dict[str, dict[str, bytes | None]] = {
    "empty image": {"jpg": b""},
    "AppleDouble leftover": {"jpg": b"\x00\x05\x16\x07" + bytes(40)},
    "damaged record": {"json": b"{"},
    "damaged image": {"jpg": jpeg()[:200]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_set_is_streamed_past_every_kind_of_damage(
    tmp_path: Path, sound_shards: tuple[Path, dict[str, Manifest]], damage: str
) -> None:
    folder, manifests = sound_shards
    assert len(manifests) == 20 + 36 + 10
    shutil.copytree(folder, tmp_path / "shards")
    for name in manifests:
        rewritten(tmp_path / "shards" / name / "shard-000000.tar", DAMAGES[damage])
    for checkup in examine([tmp_path / "shards"], **OPTIONS):
        told = kinds(checkup)
        assert told.pop("shard changed") == 1 and told == {damage: 1}, checkup.name
    for name, manifest in manifests.items():
        with pytest.raises(VirtueError, match=r"not the shard of its manifest|not those of its manifest"):
            list(read_whole(tmp_path / "shards" / name))
        data, samples = streamed(seal(tmp_path / "shards" / name), manifest)
        with tarfile.open(tmp_path / "shards" / name / "shard-000000.tar") as tar:
            records = {member.partition(".")[0] for member in tar.getnames()}
        assert data.skipped and (samples or len(records) == 1), name
    for name in manifests:
        tar = tmp_path / "shards" / name / "shard-000000.tar"
        tar.write_bytes(tar.read_bytes()[:-3000])  # and cut off behind that
        with pytest.raises(VirtueError, match=r"shard-000000.tar with [\d,]+ bytes, expected"):
            ShardFolder.open(tmp_path / "shards" / name, "train")


def read_whole(folder: Path) -> Iterator[Any]:
    """Read a folder as an evaluation does, which compares checksums."""
    found = ShardFolder.open(folder, "test")
    found = replace(found, manifest=replace(found.manifest, kind="rankings"))
    return read_shards(({"url": str(path)} for path in found.paths), found, SkipLog(BadSampleLimits()))


def streamed(folder: Path, manifest: Manifest) -> tuple[Any, list[Any]]:
    """Return the DataModule of a set, and what it gave: every row once."""
    module: Any = MMEBDataModule if folder.name.startswith("MMEB") else SCaRDataModule
    data = (
        module(str(folder), batch_size=1, sampling=SamplingOptions(steps_per_epoch=manifest.rows))
        if manifest.kind == "pairs"
        else module(test={"test": str(folder)}, batch_size=ROWS)
    )
    data.connect(Keep())
    loader = data.train_dataloader() if manifest.kind == "pairs" else data.test_dataloader()
    return data, [sample for batch in loader for sample in batch]


class Keep:
    def collate_train(self, samples: Any) -> Any:
        return list(samples)

    collate_eval = collate_train


def test_what_is_sound_is_called_sound(tmp_path: Path) -> None:
    root = write_official_scar(write_official_mmeb(tmp_path / "official", MMEB[:3]), SCAR[:2])
    convert_mmeb(root, tmp_path / "shards")
    convert_scar(root, tmp_path / "shards")
    for path in (root, tmp_path / "shards"):
        found = examine([path], **OPTIONS)
        assert found and [kinds(checkup) for checkup in found] == [{}] * len(found) and count_errors(found) == 0
        assert all(checkup.rows == ROWS and checkup.images >= ROWS for checkup in found)


FAULTS: dict[str, dict[str, Any]] = {
    "box outside the image": {"bbox": [1.0, 2.0, 500.0, 4.0]},
    "box without area": {"bbox": [1.0, 2.0, 0.0, 4.0]},
    "no box": {"bbox": None},
    "empty mask": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": rle([0, 0, 0, 0])["counts"]}},
    "mask of another size": {"segmentation": {"size": [WIDTH, HEIGHT], "counts": rle([1, 2, 4, 5])["counts"]}},
    "mask elsewhere than its box": {"segmentation": rle([10, 8, 4, 4])},
    "missing caption": {"pos_text": ""},
    "gold repeated among negatives": {"pos_text": "wrong 1 of 1 0"},
    "caption equals a distractor": {"pos_text": " Wrong 1 of 1  0"},
    "missing image": {"qry_image_path": "mini_train/none.jpg"},
    "no image": {"qry_image_path": "../../secret.jpg"},
    "AppleDouble leftover": {"qry_image_path": "mini_train/._0001.jpg"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_rows_are_named_with_row_and_path(tmp_path: Path, fault: str) -> None:
    def spoil(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        pairs[2].update(FAULTS[fault])

    root = write_scar(tmp_path / "scar", train=[2, 1, 1], val=[1], edit=spoil)
    checkup = next(checkup for checkup in examine([root], **OPTIONS) if checkup.name == "SCAR_mini")
    assert kinds(checkup) == {fault: 1}
    (finding,) = checkup.findings
    assert (
        finding.key == "SCAR_mini/2"
        and finding.image == FAULTS[fault].get("qry_image_path", "mini_train/0001.jpg")
        and not finding.is_warning
    )


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if not {"qry_image_path", "pos_text"} & FAULTS[fault].keys()]
)
def test_regions_that_cannot_be_are_told_of_in_every_set_and_streamed_past(tmp_path: Path, fault: str) -> None:
    root = write_official_scar(tmp_path / "official")
    for path in (*root.glob("SCaR-train/*.parquet"), *root.glob("SCaR-eval/*.parquet")):
        rows = pq.read_table(path).to_pylist()
        if FAULTS[fault].keys() <= rows[1].keys():
            for row in rows if "segmentation" in FAULTS[fault] else ():
                row["segmentation"] = rle(row["bbox"])  # a column holds one way of writing masks
            rows[1].update(FAULTS[fault])
            write_table(path, rows)
    spoilt = {checkup.name for checkup in examine([root], **OPTIONS) if fault in kinds(checkup)}
    assert len(spoilt) == (10 if "bbox" in FAULTS[fault] else 5)  # evaluation has no masks
    manifests = convert_scar(root, tmp_path / "shards")
    for checkup in examine([tmp_path / "shards"], **OPTIONS):
        manifest = manifests[checkup.name]
        assert (sum(manifest.skipped.values()) + len(checkup.findings) == 1) == (checkup.name in spoilt), checkup.name
        assert streamed(tmp_path / "shards" / checkup.name, manifest)[1]


def test_equal_pairs_are_a_warning(tmp_path: Path) -> None:
    def spoil(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        pairs[1].update({name: pairs[0][name] for name in ("pos_text", "bbox", "segmentation")})

    checkups = examine([write_scar(tmp_path / "scar", edit=spoil)], **OPTIONS)
    findings = [finding for checkup in checkups for finding in checkup.findings if finding.kind == "duplicate pair"]
    assert [sorted((finding.key, finding.detail.split()[-1])) for finding in findings] == [
        ["SCAR_mini/0", "SCAR_mini/1"]
    ]
    assert count_errors([checkup for checkup in checkups if checkup.name == "SCAR_mini"]) == 0


def rewritten(path: Path, changes: dict[str, bytes | None]) -> None:
    """The tar with other members of the given endings; None leaves them out."""
    records = list(
        wds.tariterators.group_by_keys(
            wds.tariterators.tar_file_expander([{"url": str(path), "stream": path.open("rb")}])
        )
    )
    with path.open("wb") as stream, wds.TarWriter(stream, encoder=False, mtime=0) as tar:
        for number, record in enumerate(records):
            changed = {**record, **(changes if number == 0 else {})}
            tar.write(
                {
                    name: data
                    for name, data in changed.items()
                    if data is not None and (name == "__key__" or not name.startswith("__"))
                }
            )


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_told_of(tmp_path: Path, damage: str) -> None:
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "out")
    rewritten(tmp_path / "out/SCAR_mini/shard-000000.tar", DAMAGES[damage])
    checkup = next(checkup for checkup in examine([tmp_path / "out"], **OPTIONS) if checkup.name == "SCAR_mini")
    assert kinds(checkup) == {"shard changed": 1, damage: 1}


def test_a_cut_off_shard_and_half_written_ones(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "out")
    path = tmp_path / "out/SCAR_mini/shard-000000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    (tmp_path / "out/.SCAR_other.partial").mkdir()
    (tmp_path / "out/._x.jpg").write_bytes(b"")
    found = [kinds(checkup) for checkup in examine([tmp_path / "out"], **OPTIONS)]
    assert found == [
        {"shard changed": 1, "damaged record": 1, "damaged tar": 1},
        {},
        {"half-written shards": 1, "AppleDouble leftover beside the images": 1},
    ]


def test_images_of_evaluation_in_training_are_found_the_same_and_alike(tmp_path: Path) -> None:
    def unmask(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        for row in (*pairs, *rankings):
            row["segmentation"] = None

    root = write_scar(tmp_path / "scar", train=[1] * 4, val=[1] * 3, edit=unmask)
    for number in range(4):
        (root / f"images/mini_train/{number:04d}.jpg").write_bytes(photograph(number, (160, 120)))
    (root / "images/mini_val/0000.jpg").write_bytes(photograph(2, (160, 120)))
    (root / "images/mini_val/0001.jpg").write_bytes(photograph(3, (320, 240), 80))
    (root / "images/mini_val/0002.jpg").write_bytes(photograph(9, (160, 120)))
    checkups = {checkup.name: checkup for checkup in examine([root], **OPTIONS)}
    assert not checkups["SCAR_mini"].findings
    assert {finding.kind: (finding.key, finding.detail) for finding in checkups["SCaR_eval_mini_val"].findings} == {
        "image of the training data": (
            "SCaR_eval_mini_val (mini_val/0000.jpg)",
            "its bytes are those of SCAR_mini (mini_train/0002.jpg)",
        ),
        "looks like a training image": (
            "SCaR_eval_mini_val (mini_val/0001.jpg)",
            "it looks like SCAR_mini (mini_train/0003.jpg)",
        ),
    }


@pytest.mark.parametrize("shards", [False, True])
def test_leaked_images_are_shown(tmp_path: Path, shards: bool) -> None:
    root = write_scar(tmp_path / "scar", train=[1] * 3, val=[1] * 2)
    (root / "images/mini_train/0002.jpg").write_bytes(photograph(7))
    (root / "images/mini_val/0001.jpg").write_bytes(photograph(7))
    if shards:
        convert_scar(root, tmp_path / "out")
    sheet = ContactSheet()
    examine([tmp_path / "out" if shards else root], on_finding=sheet.add, **OPTIONS)
    (leak,) = [shown for shown in sheet.exhibits if shown.finding.key == "SCaR_eval_mini_val (mini_val/0001.jpg)"]
    assert leak.finding.kind == "image of the training data" and leak.finding.image == "mini_val/0001.jpg"
    assert leak.tile.tobytes() == tile(decode(photograph(7), ""), None).tobytes()


def test_hashes_tell_images_apart_but_not_their_copies() -> None:
    hashes = {seed: difference_hash(decode(photograph(seed, (160, 120)), "")) for seed in range(60)}
    assert None not in hashes.values()
    copies = {str(seed): difference_hash(decode(photograph(seed, (80, 64), 70), "")) for seed in range(60)}
    found = dict(
        find_lookalikes(
            [value for value in hashes.values() if value is not None],
            {name: value for name, value in copies.items() if value is not None},
        )
    )
    assert len(found) >= 55 and all(found[name] == hashes[int(name)] for name in found)
    others = {str(seed): difference_hash(decode(photograph(seed, (160, 120)), "")) for seed in range(60, 160)}
    assert not dict(
        find_lookalikes(
            [value for value in hashes.values() if value is not None],
            {n: v for n, v in others.items() if v is not None},
        )
    )
    assert difference_hash(torch.full((3, 20, 30), 7, dtype=torch.uint8)) is None


@pytest.mark.parametrize("bits", range(6))
def test_hashes_are_near_up_to_three_bits_wherever_these_are(bits: int) -> None:
    generator = np.random.default_rng(bits)
    for _ in range(50):
        value = int(generator.integers(0, 2**63))
        other = value
        for bit in generator.choice(64, bits, replace=False):
            other ^= 1 << int(bit)
        assert bool(list(find_lookalikes([value], {"other": other}))) == (bits <= 3)


def test_histograms_count_by_powers_of_two(tmp_path: Path) -> None:
    assert [power_of_two(value) for value in (0, 1, 2, 3, 4, 255, 256)] == [0, 1, 2, 2, 4, 128, 256]
    assert count_words("Where is it? There.") == 6
    checkup = next(
        checkup
        for checkup in examine([write_scar(tmp_path / "scar", val=[1])], **OPTIONS)
        if checkup.name == "SCAR_mini"
    )
    assert checkup.sizes == {8: 3} and sum(checkup.lengths.values()) == 6 * 6


def test_the_command_writes_json_and_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        pairs[0]["bbox"] = [1.0, 2.0, 90.0, 4.0]
        pairs[4].update({name: pairs[3][name] for name in ("pos_text", "bbox", "segmentation", "qry_image_path")})

    root = write_scar(tmp_path / "scar", train=[1] * 6, edit=spoil)
    (root / "images/mini_train/0002.jpg").write_bytes(jpeg(2)[:300])
    for number in range(2):
        (root / f"images/mini_val/{number:04d}.jpg").write_bytes(jpeg(100 + number))
    assert main([str(root), "--json", str(tmp_path / "found.json"), "--sheet", str(tmp_path / "sheet.png")]) == 1
    written = json.loads((tmp_path / "found.json").read_text())
    (folder,) = [folder for folder in written["folders"] if folder["name"] == "SCAR_mini"]
    assert {kind: problem["count"] for kind, problem in folder["problems"].items()} == {
        "box outside the image": 1,
        "damaged image": 1,
        "duplicate pair": 1,
    }
    assert (
        folder["problems"]["box outside the image"]["first"][0]["image"] == "mini_train/0000.jpg"
        and written["errors"] == 2
    )
    printed = capsys.readouterr()
    assert "2 errors, " in printed.err and "box outside" in printed.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 1200 and ((pixels[:200, :, 0] > 200) & (pixels[:200, :, 1] < 60)).any()


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mmeb(tmp_path / "mmeb")
    convert_mmeb(root, tmp_path / "out")
    folder = str(tmp_path / "out/MMEB_OK_VQA")
    assert main([folder, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 0
    (tmp_path / "out/MMEB_OK_VQA/._a").write_bytes(b"")
    assert main([folder]) == 0 and main([folder, "--strict"]) == 1
    with pytest.raises(VirtueError, match="is no folder, expected one of shards"):
        main([str(tmp_path / "none")])
    with pytest.raises(VirtueError, match=r"--tokenizer .* there is no such folder"):
        main([folder, "--tokenizer", str(tmp_path / "none")])


def test_a_tokenizer_measures_texts(tmp_path: Path) -> None:
    from fixtures.tiny_models import save_text_model
    from virtue_pl.cli.commands.doctor import load_token_counter

    assert load_token_counter(str(save_text_model(tmp_path / "minilm")))("ab c") == 3


def test_an_empty_sheet_says_so(tmp_path: Path) -> None:
    ContactSheet().save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1200, 244) and np.asarray(sheet)[:30, :200].min() < 100


def test_a_sheet_keeps_a_few_of_each_kind_errors_first(tmp_path: Path) -> None:
    sheet = ContactSheet(per_kind=2, max_total=3)
    for kind in ("duplicate pair", "damaged image"):
        for number in range(5):
            sheet.add(Finding(kind, f"set/{number}", "detail"), None, None)
    assert [exhibit.finding.key for exhibit in sheet.exhibits] == ["set/0", "set/1"] * 2
    sheet.save(tmp_path / "sheet.png")
    assert to_json([Checkup("a", "pairs", 1)])["findings"] == 0


@pytest.mark.parametrize(("number", "told"), [(0, "0 errors"), (1, "1 error"), (2, "2 errors")])
def test_numbers_agree_with_what_they_count(number: int, told: str) -> None:
    assert doctor.count(number, "error") == told


def test_a_row_that_is_left_out_stands_in_one_table() -> None:
    """A conversion would leave it out, which the table of such rows says; other problems have the first table."""
    checkup = Checkup("train", "pairs", max_pixels=10_000)
    checkup.skip(DataError("train/3", "missing image: none.png"))
    checkup.report(Finding("duplicate pair", "train/4", "as train/1"))
    console = Console(width=200, file=io.StringIO())
    console.print(doctor.problems_table([checkup]))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "left out" in printed and "duplicate pair" in printed and "missing image" not in printed
    assert left_out_table([doctor.rows_left_out(checkup)]) is not None
