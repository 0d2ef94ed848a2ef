"""The quickstart's own path, start to table, on drawn shapes and tiny random weights."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64decode
from html import escape
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fixtures.tiny_quickstart import fetch, tiny_quickstart
from virtue_pl.cli.main import main
from virtue_pl.data.conversion.source_file import no_progress
from virtue_pl.pipelines.quickstart import Plan, Quickstart
from virtue_pl.pipelines.quickstart_page import drawn_queries, example_section
from virtue_pl.types import VirtueError

ROWS = {"box", "point", "mask", "no_prompt", "no_segmentation", "blind", "set_blind"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quickstart, dict[str, object]]:
    folder = tmp_path_factory.mktemp("quickstart")
    quickstart = tiny_quickstart(folder)
    return folder, quickstart, quickstart()


def test_the_report_has_every_row_for_seen_and_held_out_objects(
    finished: tuple[Path, Quickstart, dict[str, object]],
) -> None:
    folder, _, _ = finished
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["scar_mini"].keys() == {"test_seen", "test_held_out"}
    for rows in report["scar_mini"].values():
        assert rows.keys() == ROWS
        for row in rows.values():
            assert {"hit@1", "hit@1_published", "object", "relation", "scene", "n"} <= row.keys()
            assert row["n"] == 6 and 0 <= row["hit@1"] <= 1
    chances = {"hit@1": 0.1, "hit@1_published": 0.1, "object": 0.25, "relation": 0.25, "scene": 0.25}
    assert report["chance"]["test_seen"] == pytest.approx(chances)
    assert any("iou_box" in name for name in report["segmenter"])
    assert {"scenes", "shards", "fit segmenter", "fit virtue", "test virtue"} <= report["seconds"].keys()
    assert report["context"]["seed"] == 0 and report["context"]["data_fingerprint"]


def test_each_run_leaves_images_for_tensorboard_and_its_settings(
    finished: tuple[Path, Quickstart, dict[str, object]],
) -> None:
    folder, _, _ = finished
    run = folder / "run" / "virtue"
    files = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert {"config.yaml", "hparams.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= files
    assert list(run.rglob("events.out.tfevents.*"))
    curves = EventAccumulator(str(run))
    curves.Reload()
    assert {"val/hit@1", "val/loss"} <= set(curves.Tags()["scalars"])


def test_the_page_says_what_a_prompt_is_worth_and_shows_queries(
    finished: tuple[Path, Quickstart, dict[str, object]],
) -> None:
    folder, quickstart, report = finished
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    worth = str(report["prompt_worth"])
    assert worth.count("with a box the right caption among 10 comes first for") == 2 and escape(worth) in page
    assert page.count("<table>") == 2 and page.count("<svg ") == 1 and 'src="http' not in page
    images = [b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert len(images) == 8 and all(min(Image.open(BytesIO(image)).size) > 200 for image in images)
    assert "### test_seen" in (folder / "run" / "report.md").read_text() and "_Queries" not in page
    assert all(escape(command) in page for _, command in quickstart.next_commands("shapes"))


def test_what_it_says_to_do_next_works(
    finished: tuple[Path, Quickstart, dict[str, object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, quickstart, _ = finished
    write_own_pairs(tmp_path / "my_pairs")
    monkeypatch.chdir(tmp_path)
    for _, command in quickstart.next_commands("shapes"):
        program, *arguments = shlex.split(command)
        more = ["--limit", "2", "--accelerator", "cpu", "--devices", "1"] if arguments[0] == "eval" else []
        assert program == "virtue-pl" and main([*arguments, *more]) == 0


def write_own_pairs(folder: Path) -> None:
    row = {"query": "Find the caption.", "query_image": "a.png", "bbox": [4, 4, 20, 20], "target": "a dot"}
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), (9, 80, 200)).save(folder / "images" / "a.png")
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")


def test_a_run_without_tensorboard_has_no_drawn_queries(tmp_path: Path) -> None:
    assert drawn_queries(tmp_path) == []
    assert "None were drawn" in "".join(example_section([]))


def test_a_second_quickstart_reuses_everything(finished: tuple[Path, Quickstart, dict[str, object]]) -> None:
    folder, quickstart, _ = finished

    def never(arguments: list[str]) -> int:
        raise AssertionError(f"done before: {arguments}")

    again = Quickstart(
        quickstart.plan,
        folder / "run",
        folder / "data",
        folder / "cache",
        never,
        Console(quiet=True),
        fetch,
        no_progress,
    )()
    assert again["seconds"] == quickstart.stages.seconds()


def test_a_run_that_was_stopped_goes_on_and_a_changed_one_begins_anew(
    finished: tuple[Path, Quickstart, dict[str, object]],
) -> None:
    folder, quickstart, _ = finished
    called: list[list[str]] = []

    def record(arguments: list[str]) -> int:
        called.append(arguments)
        return 0

    again = Quickstart(
        quickstart.plan,
        folder / "run",
        folder / "data",
        folder / "cache",
        record,
        Console(quiet=True),
        fetch,
        no_progress,
    )
    run = folder / "run" / "segmenter"
    again.train("segmenter", ["--config", "x"], (run / "fingerprint").read_text())
    assert called == [["fit", "--config", "x", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]]
    again.train("segmenter", ["--config", "x"], "another")
    assert called[1] == ["fit", "--config", "x"] and [path.name for path in run.iterdir()] == ["fingerprint"]


def test_the_shipped_plans_typical_seconds_are_of_its_stages(
    finished: tuple[Path, Quickstart, dict[str, object]],
) -> None:
    _, quickstart, _ = finished
    assert list(quickstart.plan.typical_seconds) == quickstart.stage_names()


def test_a_plan_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match="is not there"):
        Plan.read(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text("seed: 0\n")
    with pytest.raises(VirtueError, match=r"has \['seed'\], expected"):
        Plan.read(tmp_path / "plan.yaml")
