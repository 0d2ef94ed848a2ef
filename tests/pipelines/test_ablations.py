"""A study start to end on drawn shapes and tiny random weights: one variant with two seeds, one without the
segmentation stream.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from fixtures.tiny_quickstart import ROOT, scenes_and_segmenter, tiny_plan
from virtue_pl.cli import lightning
from virtue_pl.cli.main import main
from virtue_pl.pipelines.ablations import AblationPlan, Ablations
from virtue_pl.types import VirtueError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `plan.yaml` and what its variants share."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ablations")
    runs, features = tiny_plan().runs, tiny_plan().features
    plan: dict[str, Any] = {
        "precision": "32-true",
        "shared": scenes_and_segmenter(folder),
        "overrides": {"trainer.val_check_interval": 1},
        "seeds": [0],
        "reference": "virtue",
        "sets": {"val": {"data.init_args.test": {"val": "${shared.shards}/SCaR_eval_mini_val"}}, "test": {}},
        "variants": {
            "virtue": {
                "configs": list(runs["virtue"].configs),
                "overrides": {
                    **runs["virtue"].overrides,
                    "model.init_args.alignment_steps": 1,
                    "model.init_args.evaluation_modes": ["box", "no_prompt"],
                },
                "seeds": [0, 1],
                "rows": {"box": "virtue", "no_prompt": "grid"},
            },
            "crop": {
                "configs": [*runs["no_segmentation"].configs, str(ROOT / "configs/overlays/ablations/crop.yaml")],
                "overrides": dict(runs["no_segmentation"].overrides),
                "rows": {"box": "crop"},
                "features": {
                    "configs": list(features.configs),
                    "overrides": dict(features.overrides),
                    "result": RESULT,
                },
            },
        },
        "segment_tokens": {"virtue": 10, "crop": 0},
        "learning_curves": ["virtue", "crop"],
        "means": {"scar": "scar_mini/", "nothing": "mmeb_"},
    }
    for variant in plan["variants"].values():
        variant["overrides"].pop("trainer.val_check_interval")
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder


RESULT = "SCaR_eval_mini_test_held_out/features/features.json"
STORED = ("predict", "out/features")


class Recorder:
    """`lightning.main`, which writes down what it was called for and fails at the given run."""

    def __init__(self, fails_at: str = "nothing") -> None:
        self.fails_at = fails_at
        self.called: list[tuple[str, str]] = []

    def __call__(self, arguments: list[str]) -> int:
        run = "/".join(Path(next(word for word in arguments if word.startswith("--shared.run="))).parts[-2:])
        self.called.append((arguments[0], run))
        return 1 if (arguments[0], run) == ("fit", self.fails_at) else lightning.main(arguments)


def study(folder: Path, command: Recorder) -> Ablations:
    return Ablations(AblationPlan.read(folder / "plan.yaml"), folder / "out", command, Console(quiet=True))


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Recorder, Recorder]:
    """A study that failed at its last variant, and then went on."""
    first, second = Recorder("crop/seed_0"), Recorder()
    with pytest.raises(VirtueError, match="lightning fit ended with exit code 1"):
        study(folder, first)()
    study(folder, second)()
    return first, second


def test_a_stopped_study_goes_on(finished: tuple[Recorder, Recorder]) -> None:
    first, second = finished
    done = [
        [("fit", f"virtue/seed_{seed}"), ("test", f"seed_{seed}/val"), ("test", f"virtue/seed_{seed}")]
        for seed in (0, 1)
    ]
    assert first.called == [*done[0], *done[1], STORED, ("fit", "crop/seed_0")]
    assert second.called == [("fit", "crop/seed_0"), ("test", "seed_0/val"), ("test", "crop/seed_0")]


def test_a_design_is_argued_on_development_scenes(folder: Path, finished: tuple[Recorder, Recorder]) -> None:
    """The plan's sets stand apart; `--sets val` reads no test set."""
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["set"] == "test" and report["sets"].keys() == {"val", "test"}
    assert report["sets"]["val"]["shares"].keys() == {"scar_mini/val"}
    assert report["sets"]["test"]["shares"] == report["shares"] and "scar_mini/val" not in report["shares"]
    assert report["sets"]["val"]["chance"]["scar_mini/val"]["hit@1"] == pytest.approx(0.1)
    text = (folder / "out" / "report.md").read_text()
    assert text.index("## val\n") < text.index("### scar_mini/val") < text.index("## test\n")
    command = Recorder()
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    (folder / "argued.yaml").write_text(yaml.safe_dump({**plan, "segment_tokens": {}, "learning_curves": []}))
    argued = Ablations(AblationPlan.read(folder / "argued.yaml"), folder / "argued", command, Console(quiet=True))
    found = argued(["crop"], ["val"])
    assert command.called[-2:] == [("fit", "crop/seed_0"), ("test", "seed_0/val")]
    assert found["set"] == "val" and found["shares"].keys() == {"scar_mini/val"}
    with pytest.raises(VirtueError, match=r"the plan has no set 'dev', expected some of (val, test|test, val)"):
        argued(["crop"], ["dev"])


def test_the_report_has_rows_with_intervals_and_paired_differences(
    folder: Path, finished: tuple[Recorder, Recorder]
) -> None:
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["shares"].keys() == {"scar_mini/test_seen", "scar_mini/test_held_out"}
    for task, rows in report["shares"].items():
        assert list(rows) == ["virtue", "grid", "crop"] and list(report["differences"][task]) == ["grid", "crop"]
        assert [rows[name]["hit@1"]["seeds"] for name in rows] == [2, 2, 1]
        assert all(
            row["hit@1"]["queries"] == 6 and row["hit@1"]["low"] <= row["hit@1"]["mean"] <= row["hit@1"]["high"]
            for row in rows.values()
        )
        assert {"hit@1", "object", "relation", "scene"} <= rows["crop"].keys()
    of_virtue = [rows["virtue"]["hit@1"]["mean"] for rows in report["shares"].values()]
    assert report["means"]["scar"]["virtue"] == pytest.approx(sum(of_virtue) / 2) and report["means"]["nothing"] == {}
    assert report["arms"]["virtue"]["seconds"]["fit"] > 0 and report["chance"]["scar_mini/test_seen"][
        "hit@1"
    ] == pytest.approx(0.1)
    assert (
        len(report["arms"]["crop"]["data_fingerprints"]) == 1
        and len({tuple(variant["data_fingerprints"]) for variant in report["arms"].values()}) == 1
    )


def test_the_report_reads_with_tables_and_plots(folder: Path, finished: tuple[Recorder, Recorder]) -> None:
    text = (folder / "out" / "report.md").read_text()
    figures = ["bars_scar_mini.png", "segment_tokens.png", "learning_curves.png"]
    assert all(f"]({name})" in text for name in figures)
    assert "### scar_mini/test_seen, differences" in text and "| crop | " in text
    assert all(min(Image.open(folder / "out" / name).size) > 300 for name in figures)


def test_seeds_differ_in_their_first_weights_and_their_data(folder: Path, finished: tuple[Recorder, Recorder]) -> None:
    configs = [
        yaml.safe_load((folder / "out" / "virtue" / f"seed_{seed}" / "config.yaml").read_text()) for seed in (0, 1)
    ]
    assert [(config["seed_everything"], config["data"]["init_args"]["reader"]["seed"]) for config in configs] == [
        (0, 0),
        (1, 1),
    ]


def test_the_command_reports_chosen_variants_and_trains_nothing_again(
    folder: Path,
    finished: tuple[Recorder, Recorder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lightning, "main", lambda arguments: pytest.fail(f"done before: {arguments}"))
    before = (folder / "out" / "report.json").read_text()
    assert (
        main(["ablations", "--plan", str(folder / "plan.yaml"), "--out", str(folder / "out"), "--variants", "crop"])
        == 0
    )
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["shares"]["scar_mini/test_seen"].keys() == {"crop"} and not report["differences"]
    (folder / "out" / "report.json").write_text(before)
    assert (
        main(["ablations", "--plan", str(folder / "plan.yaml"), "--out", str(folder / "out"), "--variants", "corp"])
        == 1
    )
    assert "the plan has no variant 'corp', expected some of virtue, crop" in capsys.readouterr().err
    assert main(["compare", str(folder / "out" / "virtue"), str(folder / "out" / "crop")]) == 0


def test_plans_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["variants"]["crop"]["seed"] = 1
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(
        VirtueError,
        match=r"variant crop has \['configs', 'features', 'overrides', 'rows', 'seed'\], expected configs and rows",
    ):
        AblationPlan.read(tmp_path / "plan.yaml")
    del plan["variants"]["crop"]["seed"]
    plan["shared"]["segmenter"] = str(tmp_path / "no.ckpt")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(VirtueError, match=r"shared\.segmenter: .*no\.ckpt is not there; run `virtue-pl quickstart`"):
        Ablations(AblationPlan.read(tmp_path / "plan.yaml"), tmp_path, Recorder(), Console(quiet=True))
