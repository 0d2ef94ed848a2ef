"""`lightning test` with the configs of evaluations, and every baseline by its one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from fixtures.evaluation_files import predictions, report, write_mmeb_sets, write_scar_set
from fixtures.tiny_release import published
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.main import main
from virtue_pl.data.eval_sets.options import EvaluationDataOptions
from virtue_pl.evaluation.retrieval.query_encoder import pool_box, token_map
from virtue_pl.evaluation.settings import EncodingOptions, LoadingOptions, QueryFormat, ReportOptions
from virtue_pl.evaluation.statistics.compare import read_run
from virtue_pl.preprocessing.input_formatters import CropFormatter
from virtue_pl.types import VirtueError

CONFIGS = Path(__file__).parents[2] / "configs"
BASELINES = sorted((CONFIGS / "overlays" / "baselines").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a set of SCaR and three of MMEB."""
    root = tmp_path_factory.mktemp("evaluations")
    published(root / "release/model")
    write_scar_set(root, rows=4, candidates=4)
    return write_mmeb_sets(root, rows=2)


def run(folder: Path, config: str, out: str, sets: str, *layers: Path) -> Path:
    laid = [part for layer in layers for part in ("--config", str(layer))]
    values = {"model": folder / "release/model", "data": folder, "out": folder / "runs" / out, "sets": sets}
    shared = [part for name, value in values.items() for part in (f"--shared.{name}", str(value))]
    store = [
        "--model.init_args.encoding.store",
        str(folder / "runs/embeddings"),
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    assert main(["test", "--config", str(CONFIGS / config), *laid, *shared, *store]) == 0
    return folder / "runs" / out


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    return run(folder, "eval_scar.yaml", "whole", "[ADE20K]")


@pytest.fixture(scope="module")
def baselines(folder: Path, whole: Path) -> dict[str, Path]:
    """Every baseline's report, by name; embeddings that two of them need are made once."""
    return {layer.stem: run(folder, "eval_scar.yaml", layer.stem, "[ADE20K]", layer) for layer in BASELINES}


def scores(out: Path) -> list[list[float]]:
    return [line["scores"] for line in predictions(out)]


def test_mmeb(folder):
    out = run(folder, "eval_mmeb.yaml", "mmeb", "[OK-VQA, MSCOCO_t2i, RefCOCO-Matching]")
    assert report(out)["averages"]["mmeb"]["all"]["sets"] == 3 and len(predictions(out)) == 6


def test_every_baseline_ranks_every_query_and_no_two_alike(baselines, whole):
    for name, out in baselines.items():
        assert [line["row"] for line in predictions(out)] == [0, 1, 2, 3], name
        assert {"scar/SCaR_ADE20K"} == {row.task for row in read_run(out)[0]}, name
    assert len({str(scores(out)) for out in (whole, *baselines.values())}) == 1 + len(BASELINES)


def test_baselines_are_compared_by_their_folders(baselines, whole, tmp_path, capsys):
    """Each was ranked in a mode of its own, which need not be named; a baseline that leaves "set_blind" is one, too."""
    assert main(["compare", str(whole), *map(str, baselines.values()), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert (
        found["shares"]["scar/SCaR_ADE20K"].keys() == {"whole", *baselines}
        and found["differences"]["scar/SCaR_ADE20K"].keys() == baselines.keys()
    )
    assert all(row["hit@1"]["queries"] == 4 for row in found["shares"]["scar/SCaR_ADE20K"].values())


def test_every_layer_says_its_folder():
    assert BASELINES and all(
        yaml.safe_load(path.read_text())["shared"]["out"] == f"runs/eval/{path.stem}" for path in BASELINES
    )


def test_what_a_baseline_looks_at(baselines):
    """Blind queries are one and show nothing; set_blind and random embed no query; each crop is another image."""
    embedded = {name: report(out)["embeddings"] for name, out in baselines.items()}
    assert embedded["blind"]["unique_pictures"] == 0 and embedded["crop"]["unique_pictures"] == 2
    assert embedded["random"]["encoded"] == embedded["set_blind"]["encoded"] == 0
    assert embedded["blind"]["unique"] == embedded["crop"]["unique"] - 3
    assert all(
        len({str(row) for row in scores(baselines[name])}) == 4
        for name in ("crop", "roi", "drawn_marker", "box_as_text")
    )
    assert [line["mode"] for line in predictions(baselines["random"])] == ["random"] * 4


def test_baselines_share_the_texts(baselines):
    """Whatever a query is made of, captions are embedded once."""
    for name in ("box_as_text", "crop", "drawn_marker", "roi", "no_prompt_no_stream"):
        found = report(baselines[name])["embeddings"]
        assert 0 < found["encoded"] < found["unique"] - 1, name
    assert report(baselines["blind"])["embeddings"]["encoded"] == 1


def test_without_a_prompt_the_regions_of_an_image_are_one_query(baselines):
    """Two regions an image; nothing tells them apart. The captions do differ, so the scores do."""
    for name in ("no_prompt_grid", "no_prompt_no_stream"):
        found = report(baselines[name])["embeddings"]
        assert found["unique"] == report(baselines["crop"])["embeddings"]["unique"] - 2


def build(*arguments: str) -> VirtueCLI:
    """Evaluator and data of the crop baseline, which load nothing yet."""
    layers = ["--config", str(CONFIGS / "eval_scar.yaml"), "--config", str(CONFIGS / "overlays/baselines/crop.yaml")]
    return VirtueCLI("test", [*layers, "--trainer.accelerator", "cpu", *arguments])


def test_layers_and_options_set_single_settings():
    """What one of them says of a group of settings leaves the rest of the group alone."""
    arguments = ["--data.init_args.options.limit", "2", "--model.init_args.query_format.mode", "point"]
    found = build(*arguments, "--model.init_args.reporting.full_lists", "5")
    crop = found.model.query_format.image_transform
    assert isinstance(crop, CropFormatter) and crop.point_side == 0.4
    assert found.model.query_format == QueryFormat("point", False, stream="none", image_transform=crop)
    assert found.datamodule.options == EvaluationDataOptions(limit=2)
    assert found.model.encoding == EncodingOptions("runs/embeddings") and found.model.loading == LoadingOptions()
    assert found.model.reporting == ReportOptions(full_lists=5)


@pytest.mark.parametrize(
    ("option", "message"),
    [("query_format.mode=oval", "query_format.mode: expected"), ("query_format.shape=1", "query_format.shape")],
)
def test_a_setting_that_is_wrong_is_named(option, message):
    with pytest.raises(VirtueError, match=message):
        build(f"--model.init_args.{option}")


def test_set_blind_stands_beside_every_result(whole):
    modes = report(whole)["results"]["scar/SCaR_ADE20K"]
    assert modes.keys() == {"box", "set_blind"} and report(whole)["chance"]["scar/SCaR_ADE20K"]["hit@1"] == 0.25


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(12, (90, 120), (3, 4)), (12, (120, 90), (4, 3)), (7, (70, 10), (7, 1)), (16, (1, 1), (4, 4))],
)
def test_tokens_are_laid_out_as_the_image_is(count, size, expected):
    tokens = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2)
    laid = token_map(tokens, size)
    assert laid.shape == (2, *expected) and torch.equal(laid[0].flatten(), tokens[:, 0])


def test_a_box_pools_what_lies_in_it():
    """Of a map whose right half is 1, a box on the right has ones alone."""
    laid = torch.zeros(1, 8, 8)
    laid[:, :, 4:] = 1
    assert pool_box(laid, torch.tensor([0.75, 0.0, 1.0, 1.0])).min() == 1
    assert pool_box(laid, torch.tensor([0.0, 0.0, 0.25, 1.0])).max() == 0
    assert pool_box(laid, None).mean() == pytest.approx(0.5, abs=0.05)
