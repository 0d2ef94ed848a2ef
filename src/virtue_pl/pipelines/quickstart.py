"""The main path in one go: images, scenes, shards, stored features, a segmenter, embedders, one table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.conversion.source_file import Progress
from virtue_pl.engine.precision import choose_precision
from virtue_pl.evaluation.reports.report_files import write_json, write_text
from virtue_pl.evaluation.reports.tables import Lost, markdown, rich_tables
from virtue_pl.evaluation.statistics.summary import Results, context, merge, select
from virtue_pl.pipelines.plan import Run, content_of, read_plan, read_run
from virtue_pl.pipelines.prompt_worth import PromptWorth, describe_worth, prompt_worth
from virtue_pl.pipelines.quickstart_page import drawn_queries, quickstart_page
from virtue_pl.pipelines.runs import Command, Runs
from virtue_pl.types.fingerprints import library_versions

if TYPE_CHECKING:
    from virtue_pl.data.scenes import SceneConfig

Fetch = Callable[[str, Path, Console], str]


@dataclass(frozen=True)
class Plan:
    """Plan of the quickstart, read from YAML.

    precision: of all runs; "auto" takes bfloat16 where the processor multiplies in it, else float32.
    features: the run whose frozen networks see every image once, before anything is trained.
    typical_seconds: of the stages by name, on some machine, from which the time left is estimated on any (`TimeLeft`).

    Example:
        >>> list(Plan.read("configs/studies/quickstart.yaml").runs)  # doctest: +SKIP
        ['segmenter', 'virtue', 'no_segmentation', 'blind']
    """

    seed: int
    precision: str
    scenes: Mapping[str, Any]
    shards: Mapping[str, Any]
    features: Run
    runs: Mapping[str, Run]
    rows: Mapping[str, Mapping[str, str]]
    typical_seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan. Raises VirtueError for keys that are missing or too many."""
        found = read_plan(
            path, {"seed", "precision", "scenes", "shards", "features", "runs", "rows"}, {"typical_seconds"}
        )
        runs = {name: read_run(run) for name, run in found.pop("runs").items()}
        return cls(features=read_run(found.pop("features")), runs=runs, **found)


class Quickstart(Runs):
    """Main path in one go: scenes, shards, stored features, training, tests and a table of results.

    Args:
        plan: what to do.
        out: folder of the runs and the report.
        data: folder of scenes and shards.
        cache: folder of fetched images and weights.
        lightning: runs `fit` or `test` with their arguments.
        fetch: fills the cache and returns the source of the scenes, given the wished one.
        progress: shows how far the shards are, see `convert_scar`.

    Example:
        >>> plan, out = Plan.read("configs/studies/quickstart.yaml"), Path("runs/quickstart")  # doctest: +SKIP
        >>> Quickstart(plan, out, Path("data"), Path("data/cache"), lightning.main, Console(), fetch, show_progress)()
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        data: Path,
        cache: Path,
        lightning: Command,
        console: Console,
        fetch: Fetch,
        progress: Progress,
    ) -> None:
        super().__init__(out, lightning, console)
        self.plan = plan
        self.data = data
        self.cache = cache
        self.fetch = fetch
        self.progress = progress

    def __call__(self) -> dict[str, Any]:
        """Do every stage; returns what `report.json` holds."""
        source = self.fetch(self.plan.scenes["source"], self.cache, self.console)
        scenes = self.data / f"scar_mini_{source}"
        shards = self.data / "shards" / scenes.name
        self.stages.expect(self.stage_names(), self.plan.typical_seconds)
        made = self.stages.run(
            "scenes",
            self.scenes_made_from(source),
            scenes / "scenes.json",
            lambda _: self.write_scenes(source, scenes),
            products=[scenes],
        )
        made = self.stages.run(
            "shards",
            [made, self.plan.seed, self.plan.shards, library_versions(("pycocotools",))],
            shards / "SCaR_eval_mini_val" / "manifest.json",
            lambda _: self.write_shards(scenes, shards),
            products=[shards],
        )
        weights = content_of(self.cache / "weights")
        made = self.store_features([made, weights], shards)
        fitted: dict[str, str] = {}
        for name in self.plan.runs:
            fitted[name] = self.fit(name, [made, weights, fitted.get("segmenter")], shards)
        for name in self.plan.runs:
            self.test(name, [fitted[name]], shards)
        return self.report(source)

    def stage_names(self) -> list[str]:
        """Return the names of all stages, in order."""
        runs = [f"{command} {name}" for command in ("fit", "test") for name in self.plan.runs]
        return ["scenes", "shards", "features", *runs]

    def scene_config(self, source: str) -> SceneConfig:
        """Return the settings of the scenes."""
        from virtue_pl.data.scenes import SceneConfig

        return SceneConfig(**{**self.plan.scenes, "source": source}, seed=self.plan.seed, cache=str(self.cache))

    def scenes_made_from(self, source: str) -> list[Any]:
        """Return what the scenes depend on: their settings, and the images that were fetched."""
        from virtue_pl.data.scenes.writer import fingerprint

        return [self.plan.seed, source, self.plan.scenes, fingerprint(self.scene_config(source))]

    def write_scenes(self, source: str, scenes: Path) -> None:
        """Compose scenes."""
        from virtue_pl.data.scenes import write_scenes

        write_scenes(self.scene_config(source), scenes, os.cpu_count() or 1)

    def write_shards(self, scenes: Path, shards: Path) -> None:
        """Write the scenes, and rows of MMEB-mini where the plan wants them, as shards."""
        convert_scar(scenes, shards, seed=self.plan.seed, progress=self.progress, **self.plan.shards)
        if self.plan.scenes.get("mmeb_train"):
            convert_mmeb(scenes, shards, seed=self.plan.seed, progress=self.progress, **self.plan.shards)

    def store_features(self, made_from: list[Any], shards: Path) -> str:
        """Store frozen features of every image. Returns the stage's fingerprint."""
        result = shards / "SCaR_eval_mini_test_held_out" / "features" / "features.json"
        return self.features_run(
            self.plan.features, self.shared("segmenter", shards), made_from, result, self.options()
        )

    def options(self, run: Run | None = None) -> list[str]:
        """Return the options of every run; a given one reads the stored features, unless it says otherwise."""
        own = run is None or "data.init_args.features" in run.overrides
        stored = [] if own else ["--data.init_args.features=features"]
        return [
            f"--seed_everything={self.plan.seed}",
            f"--trainer.precision={choose_precision(self.plan.precision)}",
            *stored,
        ]

    def shared(self, name: str, shards: Path) -> dict[str, Any]:
        """Return the values that a run's parts share."""
        shared = {"shards": str(shards), "weights": str(self.cache / "weights")}
        return shared if name == "segmenter" else {**shared, "segmenter": str(self.checkpoint("segmenter"))}

    def fit(self, name: str, made_from: list[Any], shards: Path) -> str:
        """Train a run. Returns the stage's fingerprint."""
        return self.fit_run(
            name, self.plan.runs[name], self.shared(name, shards), made_from, self.options(self.plan.runs[name])
        )

    def test(self, name: str, made_from: list[Any], shards: Path) -> None:
        """Test a run."""
        self.test_run(
            name, self.plan.runs[name], self.shared(name, shards), made_from, self.options(self.plan.runs[name])
        )

    def report(self, source: str) -> dict[str, Any]:
        """Join the runs' reports to one table, print it and write it."""
        reports = {name: self.report_of(name) for name in self.plan.runs}
        worth = self.prompt_worth(reports)
        results = merge(*(select(reports[name]["results"], rows) for name, rows in self.plan.rows.items()))
        chance_levels = {
            by_set(task): values for task, values in next(reports[name] for name in self.plan.rows)["chance"].items()
        }
        results = {by_set(task): rows for task, rows in results.items()}
        lost = self.left_out(reports)
        report: dict[str, Any] = {
            "scar_mini": results,
            "chance": chance_levels,
            "left_out": lost,
            "prompt_worth": describe_worth(worth, chance_levels),
            "segmenter": {name.removeprefix("test/"): value for name, value in reports["segmenter"]["metrics"].items()},
            "seconds": self.stages.seconds(),
            "source": source,
            "context": context(
                self.settings(reports), self.plan.seed, reports["segmenter"]["context"]["data_fingerprint"]
            ),
        }
        write_json(self.out / "report.json", report)
        write_text(self.out / "report.md", self.text(report, results, chance_levels))
        commands = self.next_commands(source)
        page = quickstart_page(report, report["prompt_worth"], drawn_queries(self.out / self.prompted_run()), commands)
        write_text(self.out / "report.html", page)
        for table in rich_tables(results, chance_levels, lost):
            self.console.print(table)
        self.console.print(
            f"segmenter: {', '.join(f'{name} {value:.3f}' for name, value in sorted(report['segmenter'].items()))}",
            highlight=False,
        )
        self.print_end(report["prompt_worth"], commands)
        return report

    def print_end(self, worth: str, commands: Sequence[tuple[str, str]]) -> None:
        """Print what a prompt is worth, where the report is, and what to do next."""
        if worth:
            self.console.print(f"\n[bold]What a visual prompt is worth.[/bold] {worth}\n", highlight=False)
        self.console.print(
            f"report: {self.out / 'report.html'} (and report.json); images: tensorboard --logdir {self.out}",
            highlight=False,
            soft_wrap=True,
        )
        self.console.print("next:", highlight=False)
        for reason, command in commands:
            self.console.print(f"  {command}\n    [dim]{reason}[/dim]", highlight=False, soft_wrap=True)

    def prompted_run(self) -> str:
        """Return the run whose queries have a prompt: the one with the most rows of the table."""
        return max(self.plan.rows, key=lambda name: len(self.plan.rows[name]))

    def prompt_worth(self, reports: Mapping[str, Mapping[str, Any]]) -> list[PromptWorth]:
        """Return what a prompt is worth to that run in each set."""
        name = self.prompted_run()
        return prompt_worth(self.out / name / "predictions.jsonl", reports[name]["results"])

    def next_commands(self, source: str) -> list[tuple[str, str]]:
        """Return what to do with the model, each with its reason."""
        checkpoint = self.checkpoint(self.prompted_run())
        scenes = self.data / f"scar_mini_{source}"
        return [
            (
                "a report on every query, with the failures drawn",
                f"virtue-pl eval --model {checkpoint} --sets scar_mini --data {scenes} --out {self.out / 'evaluation'}",
            ),
            (
                "the model as a folder, for `Embedder.from_pretrained` in Python",
                f"virtue-pl export {checkpoint} --out {self.out / 'exported'}",
            ),
            (
                "pairs of your own as shards, to train on (docs/data.md says what a row is)",
                "virtue-pl shards pairs --root my_pairs --out data/shards/my_pairs",
            ),
        ]

    def left_out(self, reports: Mapping[str, Mapping[str, Any]]) -> Lost:
        """Return the number of queries that each row of the tables leaves out, by set and reason."""
        found: dict[str, dict[str, Mapping[str, int]]] = {}
        for name, rows in self.plan.rows.items():
            for task, counts in reports[name].get("left_out", {}).items():
                found.setdefault(by_set(task), {}).update(dict.fromkeys(rows.values(), counts))
        return found

    def settings(self, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the settings that the report was made with."""
        configs = {name: report["context"]["config"] for name, report in reports.items()}
        return {
            "seed": self.plan.seed,
            "precision": choose_precision(self.plan.precision),
            "scenes": dict(self.plan.scenes),
            "runs": configs,
        }

    @staticmethod
    def text(report: Mapping[str, Any], results: Results, chance_levels: Mapping[str, Mapping[str, float]]) -> str:
        """Return the report as Markdown."""
        lines = [
            f"# Quickstart ({report['source']}, seed {report['context']['seed']}, {report['context']['date']})",
            "",
        ]
        lines += [report["prompt_worth"], ""] if report["prompt_worth"] else []
        lines += [
            markdown(results, {task: dict(values) for task, values in chance_levels.items()}, report["left_out"]),
            "### segmenter",
            "",
        ]
        lines += [f"- {name}: {value:.3f}" for name, value in sorted(report["segmenter"].items())]
        lines += ["", "### seconds", ""] + [f"- {name}: {value}" for name, value in report["seconds"].items()]
        return "\n".join([*lines, ""])


def fetch(source: str, cache: Path, console: Console) -> str:
    """Fetch weights and images. Returns the source of the scenes: shapes where photographs are not to be had."""
    from virtue_pl.data.download.images import ImagesUnavailable, fetch_images, fetch_weights

    fetch_weights(cache, console)
    if source == "shapes":
        return source
    try:
        fetch_images(cache, console)
    except ImagesUnavailable as reason:
        console.print(
            f"[bold yellow]{reason}\nThe quickstart goes on with drawn shapes instead of photographs.[/bold yellow]"
        )
        return "shapes"
    return source


def by_set(task: str) -> str:
    """Return a task's set: "scar/mini/test_seen" -> "test_seen"."""
    return task.rpartition("/")[2]
