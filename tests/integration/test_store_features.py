"""Features are stored by `predict` before anything is trained, and every formatter trains from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.tiny_models import VISION_MODEL, save_vision_model
from fixtures.tiny_quickstart import ROOT, fetch, tiny_quickstart
from virtue_pl.cli.main import main
from virtue_pl.pipelines.plan import Run

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning", "ignore:.*does not have many workers"
)


@pytest.fixture(scope="module")
def stored_runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny runs of the quickstart, and what they share: the scenes' shards and random weights."""
    folder = tmp_path_factory.mktemp("made")
    quickstart = tiny_quickstart(folder)
    fetch("shapes", folder / "cache", quickstart.console)
    quickstart.write_scenes("shapes", folder / "data" / "scenes")
    quickstart.write_shards(folder / "data" / "scenes", folder / "data" / "shards")
    shared = {"shards": str(folder / "data" / "shards"), "weights": str(folder / "cache" / "weights")}
    return quickstart.plan.runs, shared, folder


def arguments(run: Run, shared: dict[str, str], *more: str) -> list[str]:
    return [*run.arguments(shared), *more, "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"]


def test_features_are_stored_by_one_run_and_read_by_all(stored_runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs, shared, folder = stored_runs
    layer = str(ROOT / "configs" / "overlays" / "features" / "store_features.yaml")
    steps = {
        name: value
        for name, value in runs["virtue"].overrides.items()
        if not name.startswith(("trainer", "data.init_args.test_rows"))
    }
    storing = Run((*runs["virtue"].configs, layer), steps)
    assert main(["predict", *arguments(storing, {**shared, "run": str(folder / "storing")})]) == 0
    for index in Path(shared["shards"]).glob("*/features/features.json"):
        content = json.loads(index.read_text())
        assert (
            content["dtype"] == "float16"
            and set(content["streams"]) == {"segmentation", "vision"}
            and content["finished"]
        )
    assert len(list(Path(shared["shards"]).glob("*/features/features.json"))) == 4
    segmenter = folder / "segmenter" / "checkpoints" / "last.ckpt"
    for name in ("segmenter", "no_segmentation", "virtue"):
        given = {**shared, "run": str(folder / name), **({"segmenter": str(segmenter)} if name == "virtue" else {})}
        assert main(["fit", *arguments(runs[name], given, "--data.init_args.features=features")]) == 0, name
    capsys.readouterr()
    (Path(shared["weights"]) / f"{VISION_MODEL}.safetensors").unlink()
    save_vision_model(Path(shared["weights"]) / f"{VISION_MODEL}.safetensors", seed=1)
    given = {**shared, "run": str(folder / "other")}
    assert main(["fit", *arguments(runs["no_segmentation"], given, "--data.init_args.features=features")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("virtue-pl: features: ") and "holds stream vision of network" in said
