"""The quickstart's own path, start to table, on drawn shapes and tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fixtures.tiny_quickstart import fetch, tiny_quickstart
from virtue_pl.data.conversion.source_file import no_progress
from virtue_pl.pipelines.quickstart import Plan, Quickstart
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
    assert (run / "config.yaml").is_file() and (run / "checkpoints" / "last.ckpt").is_file()
    assert list(run.rglob("events.out.tfevents.*"))


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


def test_a_plan_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match="is not there"):
        Plan.read(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text("seed: 0\n")
    with pytest.raises(VirtueError, match=r"has \['seed'\], expected"):
        Plan.read(tmp_path / "plan.yaml")
