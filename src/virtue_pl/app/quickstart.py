"""The whole main path in one go: pictures, scenes, shards, a segmenter, two embedders, one table."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from virtue_pl.data.scar_shards import Progress, convert_scar
from virtue_pl.evaluation.report import Results, context, merge, select, write_json, write_text
from virtue_pl.evaluation.tables import markdown, rich_tables
from virtue_pl.types import VirtueError

Command = Callable[[list[str]], int]
Fetch = Callable[[str, Path, Console], str]


@dataclass(frozen=True)
class Run:
    """One model of the plan: its configs, laid over each other, and what is changed in them."""

    configs: tuple[str, ...]
    overrides: Mapping[str, Any]

    def arguments(self, shared: Mapping[str, Any]) -> list[str]:
        layers = [part for config in self.configs for part in ("--config", config)]
        settings = {**{f"shared.{name}": value for name, value in shared.items()}, **self.overrides}
        return layers + [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]

    def content(self) -> list[Any]:
        """What changes when the run must be done again."""
        return [*(read_whole(Path(config)) for config in self.configs), dict(self.overrides)]


@dataclass(frozen=True)
class Plan:
    """What to do, read from YAML."""

    seed: int
    scenes: Mapping[str, Any]
    shards: Mapping[str, Any]
    runs: Mapping[str, Run]
    rows: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        if not Path(path).is_file():
            raise VirtueError(f"plan: {path} is not there; give the file of the plan with --plan")
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        expected = {"seed", "scenes", "shards", "runs", "rows"}
        if not isinstance(found, dict) or set(found) != expected:
            raise VirtueError(f"plan: {path} has {sorted(found) if isinstance(found, dict) else type(found).__name__}, expected {sorted(expected)}")
        runs = {name: Run(tuple(run["configs"]), run["overrides"]) for name, run in found.pop("runs").items()}
        return cls(runs=runs, **found)


class Stages:
    """Does each stage once: its seconds and what it was made from are kept in `stages.json`, and a later call reuses it."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.path = folder / "stages.json"
        self.console = console
        self.done: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.number = 0

    def run(self, name: str, made_from: Sequence[Any], result: Path, work: Callable[[str], None]) -> str:
        """Runs `work`, which is told the fingerprint of what the stage is made from and must leave `result`. Returns the fingerprint."""
        self.number += 1
        fingerprint = hashlib.sha256(json.dumps(list(made_from), sort_keys=True, default=str).encode()).hexdigest()[:16]
        if self.done.get(name, {}).get("fingerprint") == fingerprint and result.exists():
            self.console.print(f"[dim]{self.number}. {name}: done before, {result}[/dim]")
            return fingerprint
        self.console.rule(f"{self.number}. {name}")
        started = time.perf_counter()
        work(fingerprint)
        if not result.exists():
            raise VirtueError(f"{name} ended without {result}")
        self.done[name] = {"fingerprint": fingerprint, "seconds": round(time.perf_counter() - started, 1)}
        write_json(self.path, self.done)
        return fingerprint

    def seconds(self) -> dict[str, float]:
        return {name: stage["seconds"] for name, stage in self.done.items()}


class Quickstart:
    """Joins the project's own commands into one path.

    Args:
        plan: what to do.
        out: folder of the runs and the report.
        data: folder of scenes and shards.
        cache: folder of fetched pictures and weights.
        lightning: runs `fit` or `test` with their arguments.
        fetch: fills the cache and returns the source of the scenes, given the wished one.
        progress: shows how far the shards are, see `convert_scar`.
    """

    def __init__(self, plan: Plan, out: Path, data: Path, cache: Path, lightning: Command, console: Console, fetch: Fetch, progress: Progress) -> None:
        self.plan = plan
        self.out = out
        self.data = data
        self.cache = cache
        self.lightning = lightning
        self.fetch = fetch
        self.progress = progress
        self.console = console
        out.mkdir(parents=True, exist_ok=True)
        self.stages = Stages(out, console)

    def __call__(self) -> dict[str, Any]:
        """Everything; returns what `report.json` holds."""
        source = self.fetch(self.plan.scenes["source"], self.cache, self.console)
        scenes = self.data / f"scar_mini_{source}"
        shards = self.data / "shards" / scenes.name
        made = self.stages.run("scenes", [self.plan.seed, source, self.plan.scenes], scenes / "scenes.json", lambda _: self.write_scenes(source, scenes))
        made = self.stages.run("shards", [made, self.plan.shards], shards / "SCaR_eval_mini_val" / "manifest.json", lambda _: self.write_shards(scenes, shards))
        fitted: dict[str, str] = {}
        for name in self.plan.runs:
            fitted[name] = self.fit(name, [made, fitted.get("segmenter")], shards)
        for name in self.plan.runs:
            self.test(name, [fitted[name]], shards)
        return self.report(source)

    def write_scenes(self, source: str, scenes: Path) -> None:
        from virtue_pl.data.scenes import SceneConfig, write_scenes

        config = SceneConfig(**{**self.plan.scenes, "source": source}, seed=self.plan.seed, cache=str(self.cache))
        write_scenes(config, scenes)

    def write_shards(self, scenes: Path, shards: Path) -> None:
        convert_scar(scenes, shards, seed=self.plan.seed, progress=self.progress, **self.plan.shards)

    def shared(self, name: str, shards: Path) -> dict[str, Any]:
        shared = {"run": str(self.out / name), "shards": str(shards), "weights": str(self.cache / "weights")}
        return shared if name == "segmenter" else {**shared, "segmenter": str(self.out / "segmenter" / "checkpoints" / "last.ckpt")}

    def fit(self, name: str, made_from: list[Any], shards: Path) -> str:
        run = self.plan.runs[name]
        checkpoint = self.out / name / "checkpoints" / "last.ckpt"
        arguments = [*run.arguments(self.shared(name, shards)), f"--seed_everything={self.plan.seed}"]
        return self.stages.run(f"fit {name}", [*made_from, run.content()], checkpoint, lambda fingerprint: self.train(name, arguments, fingerprint))

    def train(self, name: str, arguments: list[str], fingerprint: str) -> None:
        """Goes on from the last checkpoint of a run of the same fingerprint that was stopped, or else begins in an empty folder."""
        folder = self.out / name
        begun, checkpoint = folder / "fingerprint", folder / "checkpoints" / "last.ckpt"
        if begun.is_file() and begun.read_text(encoding="utf-8") == fingerprint and checkpoint.is_file():
            return self.command("fit", [*arguments, f"--ckpt_path={checkpoint}"])
        shutil.rmtree(folder, ignore_errors=True)
        write_text(begun, fingerprint)
        self.command("fit", arguments)

    def test(self, name: str, made_from: list[Any], shards: Path) -> None:
        run = self.plan.runs[name]
        checkpoint = self.out / name / "checkpoints" / "last.ckpt"
        arguments = [*run.arguments(self.shared(name, shards)), f"--seed_everything={self.plan.seed}", f"--ckpt_path={checkpoint}"]
        self.stages.run(f"test {name}", [*made_from, run.content()], self.out / name / "report.json", lambda _: self.command("test", arguments))

    def command(self, name: str, arguments: list[str]) -> None:
        self.console.print(f"[dim]lightning {name} {' '.join(arguments)}[/dim]", soft_wrap=True, highlight=False)
        code = self.lightning([name, *arguments])
        if code:
            raise VirtueError(f"lightning {name} ended with exit code {code}")

    def report(self, source: str) -> dict[str, Any]:
        """Joins the runs' reports to one table, prints it and writes it."""
        reports = {name: json.loads((self.out / name / "report.json").read_text(encoding="utf-8")) for name in self.plan.runs}
        results = merge(*(select(reports[name]["results"], rows) for name, rows in self.plan.rows.items()))
        guesses = {by_set(task): values for task, values in next(reports[name] for name in self.plan.rows)["chance"].items()}
        results = {by_set(task): rows for task, rows in results.items()}
        report: dict[str, Any] = {
            "scar_mini": results,
            "chance": guesses,
            "segmenter": {name.removeprefix("test/"): value for name, value in reports["segmenter"]["metrics"].items()},
            "seconds": self.stages.seconds(),
            "source": source,
            "context": context(
                {"seed": self.plan.seed, "scenes": dict(self.plan.scenes), "runs": {name: reports[name]["context"]["config"] for name in reports}},
                self.plan.seed,
                reports["segmenter"]["context"]["data_fingerprint"],
            ),
        }
        write_json(self.out / "report.json", report)
        write_text(self.out / "report.md", self.text(report, results, guesses))
        for table in rich_tables(results, guesses):
            self.console.print(table)
        self.console.print(f"segmenter: {', '.join(f'{name} {value:.3f}' for name, value in sorted(report['segmenter'].items()))}", highlight=False)
        self.console.print(f"report: {self.out / 'report.json'}; pictures: tensorboard --logdir {self.out}", highlight=False, soft_wrap=True)
        return report

    @staticmethod
    def text(report: Mapping[str, Any], results: Results, guesses: Mapping[str, Mapping[str, float]]) -> str:
        lines = [f"# Quickstart ({report['source']}, seed {report['context']['seed']}, {report['context']['date']})", ""]
        lines += [markdown(results, {task: dict(values) for task, values in guesses.items()}), "### segmenter", ""]
        lines += [f"- {name}: {value:.3f}" for name, value in sorted(report["segmenter"].items())]
        lines += ["", "### seconds", ""] + [f"- {name}: {value}" for name, value in report["seconds"].items()]
        return "\n".join([*lines, ""])


def read_whole(config: Path) -> list[str]:
    """The text of a config and of every file that stands in it for a part."""
    text = config.read_text(encoding="utf-8")
    named = [config.parent / value for value in strings(yaml.safe_load(text)) if value.endswith(".yaml")]
    return [text, *(part for path in named if path.is_file() for part in read_whole(path))]


def strings(value: Any) -> Iterator[str]:
    """Every string in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from strings(item)


def fetch(source: str, cache: Path, console: Console) -> str:
    """Weights and pictures. Returns the source of the scenes: where photographs are not to be had, shapes."""
    from virtue_pl.data.fetch import PicturesUnavailable, fetch_pictures, fetch_weights

    fetch_weights(cache, console)
    if source == "shapes":
        return source
    try:
        fetch_pictures(cache, console)
    except PicturesUnavailable as reason:
        console.print(f"[bold yellow]{reason}\nThe quickstart goes on with drawn shapes instead of photographs.[/bold yellow]")
        return "shapes"
    return source


def by_set(task: str) -> str:
    """ "scar/mini/test_seen" -> "test_seen"."""
    return task.rpartition("/")[2]
