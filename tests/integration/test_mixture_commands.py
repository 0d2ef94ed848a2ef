"""SCaR-mini and MMEB-mini together, through the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.tiny_models import VISION_MODEL
from fixtures.tiny_quickstart import ROOT, scenes_and_segmenter, tiny_plan
from virtue_pl.cli.main import main
from virtue_pl.data.scenes.mmeb.tasks import TASKS

MIXED = str(ROOT / "configs/data/mixed_mini.yaml")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards of both in one folder, weights and a segmenter."""
    folder = tmp_path_factory.mktemp("mixture")
    found = scenes_and_segmenter(folder)
    scenes = str(folder / "mmeb")
    counts = ["--train", "0", "--val", "0", "--test", "0", "--mmeb-train", "16", "--mmeb-test", "4"]
    assert main(["scenes", "--out", scenes, "--source", "shapes", "--size", "128", "--workers", "1", *counts]) == 0
    assert main(["shards", "mmeb", "--root", scenes, "--out", found["shards"]]) == 0
    return found


def arguments(name: str, shared: dict[str, str], folder: Path, *layers: str) -> list[str]:
    """The tiny run `name` of the quickstart's plan, on the mixture, with `layers` over it."""
    run = tiny_plan().runs[name]
    settings = {key: value for key, value in run.overrides.items() if key != "data.init_args.test_rows"}
    settings |= {
        "data.init_args.batch_size": 8,
        "data.init_args.block_size": 2,
        "model.init_args.evaluation_modes": "[box, blind]",
        "trainer.precision": "32-true",
    }
    settings |= {f"shared.{key}": value for key, value in shared.items() if name == "virtue" or key != "segmenter"} | {
        "shared.run": str(folder / name)
    }
    if name == "virtue":
        settings["model.init_args.alignment_steps"] = 1
    configs = [word for config in run.configs for word in ("--config", config)]
    return [
        *configs,
        "--data",
        MIXED,
        *(f"--config={ROOT}/configs/{layer}" for layer in layers),
        *(f"--{key}={value}" for key, value in settings.items()),
    ]


@pytest.mark.parametrize("name", ["virtue", "no_segmentation"])
def test_a_model_is_trained_and_tested_on_the_mixture(shared: dict[str, str], tmp_path: Path, name: str) -> None:
    assert main(["fit", *arguments(name, shared, tmp_path)]) == 0
    assert (
        main(["test", *arguments(name, shared, tmp_path), f"--ckpt_path={tmp_path / name / 'checkpoints/last.ckpt'}"])
        == 0
    )
    report = json.loads((tmp_path / name / "report.json").read_text())
    results, chance_levels = report["results"], report["chance"]
    assert {task for task in results if task.startswith("mmeb")} == {f"mmeb_{task.name}/test" for task in TASKS}
    for task, modes in results.items():
        text_alone = task == "mmeb_CaptionMini_t2i/test"
        shown = {"no_prompt"} if task.startswith("mmeb") else {"box"}
        assert set(modes) == {*shown, "set_blind"} | (set() if text_alone else {"blind"})
        assert all(
            row["n"] == (4 if task.startswith("mmeb") else 6) and "hit@1" in row["standard_error"]
            for row in modes.values()
        )
    assert chance_levels["mmeb_GroundingMini/test"]["hit@1"] == pytest.approx(1 / 16) and chance_levels[
        "scar_mini/test_seen"
    ]["hit@1"] == pytest.approx(0.1)
    assert "mmeb_KindMini/test" in (tmp_path / name / "report.md").read_text()


def test_check_lists_every_folder(
    shared: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    assert main(["check", *arguments("no_segmentation", shared, tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ReferMini/test/test" in printed and "weight" in printed
    assert " 0.5 " in next(line for line in printed.splitlines() if "scar_mini/train" in line)


def test_features_are_stored_for_all_parts_and_read_in_training(shared: dict[str, str], tmp_path: Path) -> None:
    stored = arguments("virtue", shared, tmp_path, "overlays/features/store_features.yaml")
    assert (
        main(
            [
                "predict",
                *stored,
                "--return_predictions=false",
                f"--shared.trunk_weights={shared['weights']}/{VISION_MODEL}.safetensors",
            ]
        )
        == 0
    )
    folders = [path for path in Path(shared["shards"]).iterdir() if path.is_dir()]
    assert len(folders) == 20 and all((folder / "features").is_dir() for folder in folders)
    assert main(["fit", *arguments("virtue", shared, tmp_path), "--data.init_args.features=features"]) == 0
