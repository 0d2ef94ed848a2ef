"""One option limits the pixels of an image at every door, and an image above it names the door's own."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.evaluation_files import write_mmeb_sets, write_scar_set
from fixtures.mmeb_files import write_mmeb
from fixtures.scar_files import jpeg, write_scar
from virtue_pl.cli import commands
from virtue_pl.cli.arguments import MAX_PIXELS
from virtue_pl.cli.commands import doctor, evaluate, robustness, shards
from virtue_pl.data import EvaluationDataModule, MMEBDataModule, PairDataModule, ReaderOptions, SCaRDataModule
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.parity.golden import item
from virtue_pl.preprocessing import images
from virtue_pl.types import DataError, PixelLimit, VirtueError, VisualPrompt

LIMITED = {"demo", "doctor", "encode", "evaluate", "parity", "robustness", "search", "serve", "shards"}
"""Commands that open images which somebody brings."""
UNLIMITED = {
    "ablations": "its data modules' YAML has the option",
    "check": "its data modules' YAML has the option, and no image is opened",
    "compare": "it reads predictions",
    "estimate": "it makes its rows up",
    "export": "it reads weights",
    "fetch": "it unpacks images that it knows by their checksums",
    "index": "it reads encoded rows",
    "quickstart": "it composes its images itself",
    "search_demo": "it reads shards that the quickstart has written",
    "scenes": "it reads the images that `fetch` knows by their checksums",
}
SMALL = str(16 * 12 - 1)
"""Fewer pixels than the images of these tests have."""


def write_pairs(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "images/a.jpg").write_bytes(jpeg())
    rows = [{"query": "what is it", "query_image": "a.jpg", "target": f"answer {number}"} for number in range(3)]
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


WRITE: dict[str, Callable[[Path], Path]] = {"scar": write_scar, "mmeb": write_mmeb, "pairs": write_pairs}
CONVERT: dict[str, Callable[..., Any]] = {"scar": convert_scar, "mmeb": convert_mmeb, "pairs": convert_pairs}


def test_every_command_that_opens_images_takes_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    names = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert names == LIMITED | set(UNLIMITED), "a new command belongs to one of the two"
    for name in sorted(LIMITED):
        main = importlib.import_module(f"virtue_pl.cli.commands.{name}").main
        for sub_command in WRITE if name == "shards" else [None]:
            with pytest.raises(SystemExit):
                main([*([sub_command] if sub_command else []), "--help"])
            told = " ".join(capsys.readouterr().out.split())
            assert "--max-pixels PIXELS" in told and "(default 25,000,000)" in told, (name, sub_command)


def test_the_default_is_one() -> None:
    assert MAX_PIXELS == images.MAX_PIXELS == ReaderOptions().max_pixels
    for parser in (doctor.parser(), shards.add_format(argparse.ArgumentParser().add_subparsers(), "own", "", "")):
        assert next(each for each in parser._actions if each.dest == "max_pixels").default == str(MAX_PIXELS)


@pytest.mark.parametrize("value", ["0", "-5", "2.5", "many"])
def test_a_limit_is_at_least_one(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        doctor.main(["data", f"--max-pixels={value}"])
    assert caught.value.code == 2
    assert f"argument --max-pixels: expected 1 or more, found '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "workers"), [*((name, "1") for name in WRITE), ("pairs", "2")])
def test_shards_leave_larger_images_out_and_name_the_option(
    tmp_path: Path, name: str, workers: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = WRITE[name](tmp_path / "data")
    arguments = [name, "--root", str(root), "--workers", workers, "--out"]
    assert shards.main([*arguments, str(tmp_path / "none"), "--max-pixels", SMALL]) == 1, "nothing is left"
    printed = capsys.readouterr().out
    left_out = [line for line in printed.splitlines() if ": 0 rows of 0 images" in line]
    assert len(left_out) == len(list((tmp_path / "none").iterdir()))
    assert all("image too large" in line for line in left_out)
    assert f"16x12 pixels, more than --max-pixels = {SMALL}" in printed
    CONVERT[name](root, tmp_path / "all", max_pixels=16 * 12)
    assert shards.main([*arguments, str(tmp_path / "all"), "--max-pixels", str(16 * 12)]) == 0, "the same shards"
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("form", ["files", "shards"])
def test_the_doctor_names_the_option(tmp_path: Path, name: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = WRITE[name](tmp_path / "data")
    if form == "shards":
        CONVERT[name](root, tmp_path / "shards")
        root = tmp_path / "shards"
    assert doctor.main([str(root), "--json", str(tmp_path / "found.json"), "--max-pixels", SMALL]) == 1
    capsys.readouterr()
    problems = [folder["problems"] for folder in json.loads((tmp_path / "found.json").read_text())["folders"]]
    details = [each["detail"] for found in problems for each in found["image too large"]["first"]]
    told = f"image too large: 16x12 pixels, more than --max-pixels = {SMALL}"
    assert details and all(detail.startswith(told) for detail in details)


@pytest.mark.parametrize("form", ["files", "shards"])
@pytest.mark.parametrize("benchmark", ["scar", "mmeb"])
def test_an_evaluation_names_the_option(
    tmp_path: Path, benchmark: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, name = (
        (write_scar_set(tmp_path / "data"), "ADE20K")
        if benchmark == "scar"
        else (write_mmeb_sets(tmp_path / "data"), "OK-VQA")
    )
    if form == "shards":
        convert, folder = (convert_scar, "SCaR-eval") if benchmark == "scar" else (convert_mmeb, "MMEB_Test_Instruct")
        (root / ("data" if benchmark == "scar" else "instruct")).rename(root / folder)
        convert(root, tmp_path / "shards")
        root = tmp_path / "shards"
    with pytest.raises(DataError, match=r"image too large: \d+x\d+ pixels, more than data.init_args.max_pixels = 4000"):
        EvaluationDataModule(str(root), [name], max_pixels=4000).read_sets()
    with pytest.raises(VirtueError, match="max_pixels is 0, expected 1 or more"):
        EvaluationDataModule(str(root), [name], max_pixels=0)

    class Stub:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.collator: Any = None

        def test(self, evaluator: Any, datamodule: EvaluationDataModule, verbose: bool) -> None:
            datamodule.read_sets()

    importlib.import_module("virtue_pl.cli.lightning")  # which takes the trainer that it finds
    monkeypatch.setattr("virtue_pl.evaluation.evaluator.Evaluator", Stub)
    monkeypatch.setattr("lightning.Trainer", Stub)
    arguments = ["--model", "m", "--sets", name, "--data", str(root), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"image too large: \d+x\d+ pixels, more than --max-pixels = 4000"):
        evaluate.main([*arguments, "--max-pixels", "4000"])
    assert evaluate.main([*arguments, "--max-pixels", "10000"]) == evaluate.main(arguments) == 0


@pytest.mark.parametrize(
    ("name", "module"), [("scar", SCaRDataModule), ("mmeb", MMEBDataModule), ("pairs", PairDataModule)]
)
@pytest.mark.parametrize("loader", ["train", "test", "predict"])
def test_data_modules_name_the_option(tmp_path: Path, name: str, module: type[SCaRDataModule], loader: str) -> None:
    root = WRITE[name](tmp_path / "data")
    if name == "pairs":
        rows = [{"query_image": "a.jpg", "candidates": ["a", "b"]}]
        (root / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = CONVERT[name](root, tmp_path / "shards")
    by_kind = {manifest.kind: str(tmp_path / "shards" / folder) for folder, manifest in folders.items()}
    data = module(
        by_kind["pairs"] if loader == "train" else None,
        test=None if loader == "train" else {"set": by_kind["rankings"]},
        batch_size=1,
        predict="images",
        reader=ReaderOptions(max_pixels=int(SMALL), max_bad_samples=0),
    )
    data.connect(SimpleNamespace(collate_train=list, collate_eval=list, collate_images=list, fingerprints={}))
    with pytest.raises(VirtueError, match=rf"16x12 pixels, more than reader\.max_pixels = {SMALL}"):
        list(getattr(data, f"{loader}_dataloader")())


def test_robustness_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_scar(write_scar(tmp_path / "data"), tmp_path / "shards")
    folders = {"set": str(tmp_path / "shards/SCaR_eval_mini_val")}
    assert len(list(robustness.ranking_samples(folders, None))) == 3 and capsys.readouterr().err == ""
    assert list(robustness.ranking_samples(folders, None, PixelLimit(int(SMALL), "--max-pixels"))) == []
    told = capsys.readouterr().err
    assert told.startswith("left out: ") and f"16x12 pixels, more than --max-pixels = {SMALL}" in told


def test_a_recording_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with pytest.raises(DataError, match=f"^a.jpg: image too large: 16x12 pixels, more than --max-pixels = {SMALL}$"):
        item(tmp_path, "what is it", "a.jpg", VisualPrompt(), PixelLimit(int(SMALL), "--max-pixels"))
