"""Models of the same tensors that compute other numbers: none is answered for by what another one left on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.evaluation_files import predictions, report, write_scar_set
from fixtures.recorded import GOLDEN
from fixtures.tiny_release import SIZES, quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.published import published_spec
from virtue_pl.cli.main import main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scar_set(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    release = published_spec(GOLDEN / "qwen2_vl", {"virtue_sam": {}}, SIZES, stride=4)
    language = release["init_args"]["fusion"]["init_args"]["backbone"]["init_args"]
    release["init_args"]["formatter"] = {"class_path": "virtue_pl.preprocessing.VirtueFormatter", "init_args": {}}
    language["vlm_model"] = str(GOLDEN / "qwen2_vl")
    (folder / "quickstart").mkdir()
    specs = {"release": release, "quickstart": quickstart_spec(folder / "quickstart")}
    for name, spec in specs.items():
        export(run_checkpoint(folder / name / "run", spec), folder / name / "model")
    return {name: folder / name / "model" for name in specs}


def evaluate(model: Path, root: Path, out: Path, *arguments: str) -> tuple[int, list[list[float]]]:
    """Return how many inputs were encoded, and every row's scores."""
    common = ["--sets", "SCaR_ADE20K", "--store", str(out.parent / "store"), "--accelerator", "cpu", "--devices", "1"]
    assert main(["eval", "--model", str(model), "--data", str(root), "--out", str(out), *common, *arguments]) == 0
    return report(out)["embeddings"]["encoded"], [line["scores"] for line in predictions(out)]


def in_spec(path: str, value: Any) -> Callable[[Path], None]:
    """Set an argument of a folder's spec, by its dotted path."""

    def change(folder: Path) -> None:
        content = yaml.safe_load((folder / "virtue.yaml").read_text())
        *parts, name = path.split(".")
        inner = content["model"]["init_args"]
        for part in parts:
            inner = inner[part]["init_args"]
        inner[name] = value
        (folder / "virtue.yaml").write_text(yaml.safe_dump(content))

    return change


def in_config(name: str, value: Any) -> Callable[[Path], None]:
    """Set a constant of the language model's config."""

    def change(folder: Path) -> None:
        path = next(folder.glob("language_model*/config.json"))
        config = json.loads(path.read_text())
        inner = config.get("text_config", config)
        inner[name if name in inner else next(iter(inner))] = value
        path.write_text(json.dumps(config))

    return change


MEAN = {"class_path": "virtue_pl.backbones.MeanPooling", "init_args": {}}
FIRST = {"class_path": "virtue_pl.backbones.FirstTokenPooling", "init_args": {}}
CHANGES = {
    "quickstart": [
        in_spec("fusion.pooling", FIRST),
        in_spec("fusion.backbone.max_tokens", 40),
        in_spec("prompt_encoder.encoder.grid_size", 2),
        in_spec("formatter.prompt_text", False),
        in_spec("connector.summary_limit", 0.5),
        in_spec("connector.class_names.temperature", 4.0),
        in_config("layer_norm_eps", 0.5),
    ],
    "release": [
        in_spec("fusion.pooling", MEAN),
        in_spec("fusion.backbone.max_tokens", 40),
        in_spec("fusion.backbone.max_pixels", 28 * 28 * 4),
        in_config("rms_norm_eps", 0.5),
    ],
}
PROMPT_TEXT, QUERIES = 3, 4
"""The change that reaches no text without an image, and the number of inputs that have one."""


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_with_other_settings_is_embedded_itself(
    name: str, exported: dict[str, Path], root: Path, tmp_path: Path
) -> None:
    encoded, scores = evaluate(exported[name], root, tmp_path / "first")
    assert encoded > 0
    moved = Path(shutil.copytree(exported[name], tmp_path / "moved"))
    assert evaluate(moved, root, tmp_path / "again", "--batch-size", "2") == (0, scores)
    for number, change in enumerate(CHANGES[name]):
        copy = Path(shutil.copytree(exported[name], tmp_path / f"model_{number}"))
        change(copy)
        found, others = evaluate(copy, root, tmp_path / f"out_{number}")
        texts_too = not (name == "quickstart" and number == PROMPT_TEXT)
        assert found == (encoded if texts_too else QUERIES), number
        assert len(others) == len(scores)


def test_another_precision_is_embedded_itself(exported: dict[str, Path], root: Path, tmp_path: Path) -> None:
    encoded, scores = evaluate(exported["quickstart"], root, tmp_path / "first")
    found, others = evaluate(exported["quickstart"], root, tmp_path / "narrow", "--dtype", "bfloat16")
    assert found == encoded and others != scores
