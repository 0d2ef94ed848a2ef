"""Stages and runs: done once, and again where anything that they depend on has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fixtures.changed_arguments import changed_leaves
from virtue_pl.data.conversion.source_file import no_progress
from virtue_pl.pipelines import runs as pipeline_runs
from virtue_pl.pipelines.plan import Run, content_of
from virtue_pl.pipelines.quickstart import Plan, Quickstart
from virtue_pl.pipelines.runs import Stages


def stage(folder: Path, made_from: list[Any], content: str = "result", name: str = "a") -> bool:
    """Run a stage; return whether it was done."""
    done: list[str] = []

    def work(fingerprint: str) -> None:
        done.append(fingerprint)
        (folder / "product").mkdir(exist_ok=True)
        (folder / "product" / "file").write_text(content)

    stages = Stages(folder, Console(quiet=True))
    stages.run(name, made_from, folder / "product" / "file", work, products=[folder / "product"])
    return bool(done)


def test_a_stage_is_done_again_where_inputs_versions_or_its_result_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage(tmp_path, [{"a": 1, "b": 2}]) and not stage(tmp_path, [{"b": 2, "a": 1}])
    assert stage(tmp_path, [{"a": 1, "b": 3}]) and not stage(tmp_path, [{"a": 1, "b": 3}])
    (tmp_path / "product" / "file").write_text("of another run")
    assert stage(tmp_path, [{"a": 1, "b": 3}])
    monkeypatch.setattr(pipeline_runs, "library_versions", lambda names: {"torch": "0.1"})
    assert stage(tmp_path, [{"a": 1, "b": 3}])


def test_a_stage_of_an_earlier_format_is_done_again(tmp_path: Path) -> None:
    stage(tmp_path, [1])
    stages = json.loads((tmp_path / "stages.json").read_text())
    (tmp_path / "stages.json").write_text(json.dumps({"a": {"fingerprint": stages["a"]["fingerprint"], "seconds": 1}}))
    assert stage(tmp_path, [1])


def test_what_a_stage_wrote_from_other_inputs_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "product").mkdir()
    (tmp_path / "product" / "of a user").write_text("")
    stage(tmp_path, [1])
    assert (tmp_path / "product" / "of a user").exists(), "an earlier stage has not written the folder"
    stage(tmp_path, [2])
    assert [path.name for path in (tmp_path / "product").iterdir()] == ["file"]
    (tmp_path / "product").rename(tmp_path / "moved")
    stage(tmp_path, [3])
    assert (tmp_path / "moved" / "file").exists()


def test_a_run_is_known_by_what_its_files_say_wherever_they_are(tmp_path: Path) -> None:
    found = []
    for folder, text in (("a", "x: 1\ny: 2\n"), ("b", "# the same\ny: 2\nx: 1\n"), ("c", "x: 1\ny: 3\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.yaml").write_text(text)
        (tmp_path / folder / "run.yaml").write_text("model: part.yaml\n")
        part = str(tmp_path / folder / "part.yaml")
        for run in (Run((str(tmp_path / folder / "run.yaml"),), {}), Run((), {"model.init_args.connector": part})):
            found.append(json.dumps(run.content(), sort_keys=True))
    assert found[0] == found[2] != found[4] and found[1] == found[3] != found[5]


def test_content_is_that_of_the_files_not_of_their_folder(tmp_path: Path) -> None:
    contents = []
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "weights.safetensors").write_text(text)
        contents.append(content_of(tmp_path / folder))
    assert contents[0] == contents[1] != contents[2]
    (tmp_path / "a" / "manifest.json").write_text("shards")
    assert list(content_of(tmp_path / "a")) == ["manifest.json"] and content_of(tmp_path / "nothing") == {}


class Bare(Quickstart):
    """The quickstart's stages, which write their results without computing anything."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.called: list[str] = []
        arguments = folder / "run", folder / "data", folder / "cache", self.command_line, Console(quiet=True)
        super().__init__(plan, *arguments, lambda source, *rest: source, no_progress)

    def command_line(self, arguments: list[str]) -> int:
        run = Path(next(each for each in arguments if each.startswith("--shared.run=")).partition("=")[2])
        self.called.append(f"{arguments[0]} {run.name}")
        shards = next(each for each in arguments if each.startswith("--shared.shards=")).partition("=")[2]
        results = {
            "fit": run / "checkpoints" / "last.ckpt",
            "test": run / "report.json",
            "predict": Path(shards) / "SCaR_eval_mini_test_held_out" / "features" / "features.json",
        }
        return self.write(results[arguments[0]], " ".join(arguments))

    def write(self, path: Path, content: str) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return 0

    def write_scenes(self, source: str, scenes: Path) -> None:
        self.called.append("scenes")
        self.write(scenes / "scenes.json", f"{source} {self.plan.scenes}")

    def write_shards(self, scenes: Path, shards: Path) -> None:
        self.called.append("shards")
        self.write(shards / "SCaR_eval_mini_val" / "manifest.json", f"{self.plan.shards}")

    def report(self, source: str) -> dict[str, Any]:
        return {}


FIRST = ["scenes", "shards", "predict features", "fit segmenter", "fit virtue", "test segmenter", "test virtue"]


def small_plan(folder: Path) -> Plan:
    (folder / "config.yaml").write_text("trainer:\n  max_steps: 3\n")
    run = Run((str(folder / "config.yaml"),), {"shared.size": 3})
    scenes = {"source": "shapes", "train": 8, "val": 4, "test": 6, "size": 128}
    return Plan(0, "32-true", scenes, {"images_per_shard": 10}, run, {"segmenter": run, "virtue": run}, {})


def redone(folder: Path, plan: Plan) -> list[str]:
    quickstart = Bare(folder, plan)
    quickstart()
    return quickstart.called


def changed_plans(plan: Plan) -> list[tuple[str, Plan, str]]:
    """Each of a plan's values changed, its name, and the first stage that depends on it."""
    more = Run(plan.features.configs, {"shared.size": 4})
    found = [
        ("seed", replace(plan, seed=1), "scenes"),
        ("precision", replace(plan, precision="bf16-mixed"), "predict features"),
        ("shards", replace(plan, shards={"images_per_shard": 11}), "shards"),
        ("features", replace(plan, features=more), "predict features"),
        ("segmenter", replace(plan, runs={**plan.runs, "segmenter": more}), "fit segmenter"),
        ("virtue", replace(plan, runs={**plan.runs, "virtue": more}), "fit virtue"),
    ]
    numbers = {name: value for name, value in plan.scenes.items() if name != "source"}
    scenes = [(path, {**plan.scenes, **changed}) for path, changed in changed_leaves(numbers)]
    return [*found, *((f"scenes {path}", replace(plan, scenes=changed), "scenes") for path, changed in scenes)]


def test_every_value_of_a_plan_has_its_stages_done_again(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    assert redone(tmp_path, plan) == FIRST and redone(tmp_path, plan) == []
    for name, changed, first in changed_plans(plan):
        called = redone(tmp_path, changed)
        assert called and called[0] == first, name
        assert "test virtue" in called, name
        assert redone(tmp_path, changed) == [], name
        redone(tmp_path, plan)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda folder: (folder / "config.yaml").write_text("trainer:\n  max_steps: 4\n"), "predict features"),
        (lambda folder: (folder / "cache" / "weights" / "trunk.safetensors").write_text("2"), "predict features"),
    ],
)
def test_another_content_of_a_config_or_of_weights_has_its_stages_done_again(
    tmp_path: Path, change: Callable[[Path], Any], first: str
) -> None:
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "cache" / "weights" / "trunk.safetensors").write_text("one")
    plan = small_plan(tmp_path)
    redone(tmp_path, plan)
    change(tmp_path)
    assert redone(tmp_path, plan)[0] == first


def test_another_folder_has_the_same_stages(tmp_path: Path) -> None:
    plans = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        redone(tmp_path / name, small_plan(tmp_path / name))
        stages = json.loads((tmp_path / name / "run" / "stages.json").read_text())
        plans.append({name: stage["fingerprint"] for name, stage in stages.items()})
    assert plans[0] == plans[1]
