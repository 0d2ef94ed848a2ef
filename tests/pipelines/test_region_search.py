"""A study of search by region from start to end, on drawn shapes and tiny weights: stages, report, index and sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from fixtures.tiny_quickstart import ROOT, scenes_and_segmenter, tiny_plan
from virtue_pl.apps.region_gallery import View
from virtue_pl.cli import lightning
from virtue_pl.cli.main import main
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.scenes import SceneConfig, write_scenes
from virtue_pl.embedder import Embedder
from virtue_pl.pipelines.region_search import Gallery, RegionSearch, RegionSearchPlan
from virtue_pl.pipelines.runs import Runs
from virtue_pl.search import VectorIndex
from virtue_pl.types import VirtueError

PLAN = ROOT / "configs" / "studies" / "region_search.yaml"
WAYS_OF_VIRTUE = ("click", "box", "whole_images", "box_to_images", "crops", "untrained_instruction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `plan.yaml`, and what the quickstart leaves."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("region_search")
    shared, tiny = scenes_and_segmenter(folder), tiny_plan()
    runs = Runs(folder / "run", lightning.main, Console(quiet=True))
    few = {**tiny.runs["virtue"].overrides, "model.init_args.alignment_steps": 0}
    run = tiny.runs["virtue"].__class__(tiny.runs["virtue"].configs, few)
    runs.fit_run("virtue", run, shared, [], ["--trainer.precision=32-true", "--data.init_args.features=features"])
    plan: dict[str, Any] = yaml.safe_load(PLAN.read_text())
    virtue = str(runs.checkpoint("virtue"))
    absolute = lambda configs: [str(ROOT / config) for config in configs]  # noqa: E731
    plan |= {"precision": "32-true", "shared": shared, "trial": 15, "gallery": write_gallery(folder, plan["gallery"])}
    plan["shared"] = {**shared, "shards": str(folder / "gallery_shards")}
    plan["models"]["virtue"]["checkpoint"] = virtue
    same = plan["models"]["same_object"]["run"]
    same["configs"] = absolute(same["configs"])
    same["overrides"] |= {
        "data": str(ROOT / same["overrides"]["data"]),
        "data.init_args.block_size": 2,
        "shared.start": virtue,
        "shared.batch_size": 4,
        "shared.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    for name in ("data.init_args.parts.scar_mini.init_args.test_rows", "data.init_args.features"):
        same["overrides"].pop(name)
    paper = plan["models"]["paper_connector"]["run"]
    paper["configs"] = absolute(paper["configs"])
    paper["overrides"] = dict(tiny.runs["virtue"].overrides)
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder


def write_gallery(folder: Path, sets: dict[str, str]) -> dict[str, str]:
    """Write regions to train on and forty of each set, of few names, and return the folders of the sets' shards."""
    write_scenes(SceneConfig(source="shapes", train=24, val=4, test=40, size=128), folder / "gallery")
    convert_scar(folder / "gallery", folder / "gallery_shards")
    return {name: str(folder / "gallery_shards" / of_set) for name, of_set in sets.items()}


class Recorder:
    """`lightning.main`, which writes down what it was called for."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, arguments: list[str]) -> int:
        self.called.append(arguments[0])
        return lightning.main(arguments)


def study(folder: Path, command: Any) -> RegionSearch:
    return RegionSearch(RegionSearchPlan.read(folder / "plan.yaml"), folder / "out", command, Console(quiet=True))


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """What a first call writes; a second one does no stage again."""
    first, second = Recorder(), Recorder()
    found = study(folder, first)()
    assert first.called == ["fit", "test", "fit"]
    again = study(folder, second)()
    assert second.called == [] and again["results"] == found["results"]
    loaded: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return loaded


def test_every_row_has_intervals_beside_chance(report: dict[str, Any]) -> None:
    plan = RegionSearchPlan.read(PLAN)
    assert report["results"].keys() == {"trial", "gallery"} and report["gallery"]["regions"] == 80
    queries = {table["title"]: table for table in report["results"]["gallery"]}
    assert queries.keys() == {"gallery, seen", "gallery, held_out"}
    for table in queries.values():
        assert list(table["rows"]) == list(plan.rows)
        for name, row in table["rows"].items():
            images = plan.rows[name].documents.prompt == "image"
            assert row["documents"] == (40 if images else 80)
            assert ("map" in row["metrics"]) == (plan.rows[name].index == "exact")
            for metric, found in row["metrics"].items():
                assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1 and found["over"] == "queries"
                assert 0 < row["chance"][metric] <= 1
        assert set(table["differences"]) == set(plan.differences)
    assert (
        sum(table["rows"]["box"]["metrics"]["hit@1"]["queries"] for table in queries.values())
        == report["gallery"]["queries"]
    )
    assert report["models"].keys() == plan.models.keys() and "fit same_object" in report["seconds"]
    assert report["tests"]["same_object"] and report["context"]["seed"] == 0 and report["context"]["versions"]["torch"]


def test_an_index_finds_what_exact_search_finds(folder: Path, report: dict[str, Any]) -> None:
    (facts,) = report["indices"].values()
    assert facts["kind"] == "ivf_rq" and facts["rows"] == 80 and 0 <= facts["found_of_exact"] <= 1
    index = VectorIndex.open(folder / "out" / "same_object_ivf_rq" / "index")
    embedder = Embedder.from_pretrained(folder / "out" / "same_object" / "checkpoints" / "last.ckpt", device="cpu")
    assert index.facts.fingerprint == embedder.fingerprint() and {"name", "set"} <= set(index.columns)


def test_the_vectors_are_those_of_the_embedder(folder: Path, report: dict[str, Any]) -> None:
    done = study(folder, lightning.main)
    gallery = Gallery(done)
    embedder = Embedder.from_pretrained(done.checkpoint_of("virtue"), device="cpu")
    image = next(done.images())
    region = image.regions[0]
    expected = np.asarray(embedder.encode(images=image.pixels, prompts=region.prompt("box")))[0]
    assert gallery.regions[0].names == {region.name}
    assert done.read_vectors("virtue", View("box"))[0] == pytest.approx(expected, abs=1e-5)


def test_the_page_and_the_sheet_stand_alone(folder: Path, report: dict[str, Any]) -> None:
    out = folder / "out"
    with Image.open(out / "hits.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 400
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "data:image/png;base64," in page and "http://" not in page.replace("http://www.w3.org", "")
    for name in (*WAYS_OF_VIRTUE, "same_object", "paper_connector"):
        assert f"| {name} |" in text and f">{name}<" in page
    assert "A query searches all scenes but its own" in text
    assert not list(out.glob(".*")) and {path.name for path in (out / "images").iterdir()} <= {"seen", "held_out"}


def test_a_plan_with_a_mistake_is_refused_in_one_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    whole = yaml.safe_load((folder / "plan.yaml").read_text())

    def refuse(match: str, **changes: Any) -> None:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**whole, **changes}))
        with pytest.raises(VirtueError, match=match) as caught:
            study(tmp_path, lightning.main)
        assert "\n" not in str(caught.value)

    rows = whole["rows"]
    row = rows["box"]
    refuse(r"plan: there is no row 'nothing'", differences={"box": "nothing"})
    refuse(
        r"plan: row box has the model 'virtu', expected one of .*virtue",
        rows=rows | {"box": row | {"model": "virtu"}},
    )
    refuse(
        r"plan: row box, query: prompt 'click', expected",
        rows=rows | {"box": row | {"query": {"prompt": "click"}}},
    )
    refuse(r"plan: row box, query is \{'txt': ''\}", rows=rows | {"box": row | {"query": {"txt": ""}}})
    refuse(r"plan: row box has \[.*\], expected model, query", rows=rows | {"box": {"model": "virtue"}})
    refuse(
        r"plan: row box searches regions with a whole image",
        rows=rows | {"box": row | {"query": {"prompt": "image"}}},
    )
    refuse(r"plan: sheet\.row finds whole images", sheet={"row": "whole_images", "queries": 1})
    refuse(r"plan: model virtue has \[\], expected checkpoint, or run", models=whole["models"] | {"virtue": {}})
    refuse(r"plan: gallery\.seen: .*nowhere is not there; run `virtue-pl quickstart`", gallery={"seen": "nowhere"})
    refuse(
        r"plan: models\.virtue\.checkpoint: none\.ckpt is not there",
        models=whole["models"] | {"virtue": {"checkpoint": "none.ckpt"}},
    )
    capsys.readouterr()
    assert main(["search-demo", "--plan", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.strip().count("\n") == 0
