"""The quickstart's plan at a size that takes seconds: drawn shapes and tiny random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiny_models import VISION_MODEL, save_text_model, save_vision_model
from virtue_pl.cli import lightning
from virtue_pl.data.conversion.source_file import silent
from virtue_pl.pipelines.plan import Run
from virtue_pl.pipelines.quickstart import Plan, Quickstart

ROOT = Path(__file__).parents[1]
STEPS = {"trainer.max_steps": 2, "trainer.val_check_interval": 2}


def fetch(source: str, cache: Path, console: Console) -> str:
    save_text_model(cache / "weights" / "minilm")
    save_vision_model(cache / "weights" / "efficientnet_lite1.safetensors")
    return source


def tiny_plan() -> Plan:
    plan = Plan.read(ROOT / "configs" / "studies" / "quickstart.yaml")
    tower = "backbone.init_args.vision_model"
    layers = "backbone.init_args.frozen_layers"
    small = {"data.init_args.batch_size": 4, **STEPS}
    whole = {"shared.trunk": VISION_MODEL, "shared.canvas_size": 128, "shared.embed_dim": 32, "shared.image_size": 128}
    whole |= {
        f"model.init_args.fusion.init_args.{tower}": VISION_MODEL,
        f"model.init_args.fusion.init_args.{layers}": 0,
    }
    of_run = {
        "segmenter": {name: whole[name] for name in ("shared.trunk", "shared.canvas_size", "shared.embed_dim")},
        "virtue": whole,
        "no_segmentation": {
            "shared.image_size": 128,
            f"model.init_args.{tower}": VISION_MODEL,
            f"model.init_args.{layers}": 0,
        },
    }
    of_run["blind"] = of_run["no_segmentation"]
    runs = {name: tiny_run(run, {**small, **of_run[name]}) for name, run in plan.runs.items()}
    scenes = {"source": "shapes", "train": 8, "val": 4, "test": 6, "size": 128}
    return replace(plan, precision="32-true", scenes=scenes, features=tiny_run(plan.features, whole), runs=runs)


def tiny_run(run: Run, overrides: dict[str, Any]) -> Run:
    return replace(
        run, configs=tuple(str(ROOT / config) for config in run.configs), overrides={**run.overrides, **overrides}
    )


def tiny_quickstart(folder: Path) -> Quickstart:
    """The quickstart, not yet run: its runs in FOLDER/run, its data in FOLDER/data."""
    return Quickstart(
        tiny_plan(),
        folder / "run",
        folder / "data",
        folder / "cache",
        lightning.main,
        Console(quiet=True),
        fetch,
        silent,
    )


def scenes_and_segmenter(folder: Path) -> dict[str, str]:
    """What variants share, made by the first stages of the quickstart in `folder`: the paths of shards, weights and
    segmenter.
    """
    quickstart = tiny_quickstart(folder)
    fetch("shapes", folder / "cache", quickstart.console)
    shards = folder / "data" / "shards"
    quickstart.write_scenes("shapes", folder / "data" / "scenes")
    quickstart.write_shards(folder / "data" / "scenes", shards)
    quickstart.store_features("", shards)
    quickstart.fit("segmenter", [], shards)
    return {
        "shards": str(shards),
        "weights": str(folder / "cache" / "weights"),
        "segmenter": str(quickstart.checkpoint("segmenter")),
    }
