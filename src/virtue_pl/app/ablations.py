"""A study: arms that differ in a YAML or two are trained, tested on the same queries, compared and plotted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from virtue_pl.app.plan import Run, read_plan, read_run
from virtue_pl.app.runs import Command, Runs, precision_here
from virtue_pl.evaluation.compare import ComparedRun, Comparison, compare, fingerprints_of, mean_shares
from virtue_pl.evaluation.comparison_tables import markdown_comparison, rich_comparison
from virtue_pl.evaluation.curves import read_curve
from virtue_pl.evaluation.plots import plot_against_number, plot_curves, plot_families
from virtue_pl.evaluation.predictions import read_predictions
from virtue_pl.evaluation.report import Chance, context, write_json, write_text
from virtue_pl.types import VirtueError


@dataclass(frozen=True)
class FeaturesRun:
    """A run of `predict`, whose frozen networks see each picture once. result: the last file that it writes, in the folder of shards."""

    run: Run
    result: str


@dataclass(frozen=True)
class Arm:
    """One model of the study.

    configs, overrides: see `Run`. rows: evaluation mode -> the row of the tables that it becomes.
    seeds: one training each. against: the row that this arm's rows are compared to.
    features: what is stored before it, once for all arms that name the same.
    """

    configs: Sequence[str]
    rows: Mapping[str, str]
    overrides: Mapping[str, Any]
    seeds: Sequence[int]
    against: str
    features: FeaturesRun | None = None


@dataclass(frozen=True)
class AblationPlan:
    """What to do, read from YAML.

    precision: of all arms, see `precision_here`. shared: paths that all arms share, which must be there. segment_tokens: row -> number, for the figure over it.
    learning_curves: the arms in the figure of learning curves. means: name -> what the tasks of a mean over tasks start with.
    """

    precision: str
    shared: Mapping[str, str]
    arms: Mapping[str, Arm]
    segment_tokens: Mapping[str, float]
    learning_curves: Sequence[str]
    means: Mapping[str, str]

    @classmethod
    def read(cls, path: str | Path) -> AblationPlan:
        """In the file `overrides`, `seeds` and `against` stand for all arms, and an arm may say its own."""
        found = read_plan(path, {"precision", "shared", "overrides", "seeds", "against", "arms", "segment_tokens", "learning_curves", "means"})
        arms = {name: read_arm(name, arm, found) for name, arm in found["arms"].items()}
        return cls(found["precision"], found["shared"], arms, found["segment_tokens"], found["learning_curves"], found["means"])


def read_arm(name: str, arm: Mapping[str, Any], plan: Mapping[str, Any]) -> Arm:
    """Raises VirtueError for keys that an arm does not have, or lacks."""
    known = [field.name for field in fields(Arm)]
    if not {"configs", "rows"} <= arm.keys() <= set(known):
        raise VirtueError(f"plan: arm {name} has {sorted(arm)}, expected configs and rows, and of {', '.join(known[2:])} what differs")
    own: dict[str, Any] = {"overrides": {**plan["overrides"], **arm.get("overrides", {})}}
    own |= {"features": FeaturesRun(read_run(arm["features"]), arm["features"]["result"])} if "features" in arm else {}
    return Arm(**{"seeds": plan["seeds"], "against": plan["against"], **arm, **own})


class Ablations(Runs):
    """Trains each arm with each of its seeds in OUT/ARM/seed_N, tests it, and reports.

    Args:
        plan: what to do.
        out: folder of the runs and the report.
        lightning: runs `fit` or `test` with their arguments.
    """

    def __init__(self, plan: AblationPlan, out: Path, lightning: Command, console: Console) -> None:
        super().__init__(out, lightning, console)
        self.plan = plan
        for name, path in plan.shared.items():
            if not Path(path).exists():
                raise VirtueError(f"plan: shared.{name}: {path} is not there; run `virtue-pl quickstart`, which makes it, or name another in the plan")

    def __call__(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """The named arms, or all; returns what `report.json` holds."""
        for name in names:
            if name not in self.plan.arms:
                raise VirtueError(f"the plan has no arm {name!r}, expected some of {', '.join(self.plan.arms)}")
        arms = {name: arm for name, arm in self.plan.arms.items() if name in names or not names}
        for name, arm in arms.items():
            if arm.features is not None:
                self.store_features(arm.features)
            for seed in arm.seeds:
                self.train_and_test(run_name(name, seed), arm, seed)
        return self.report(arms)

    def store_features(self, features: FeaturesRun) -> None:
        made_from, result = [*map(content_of, self.plan.shared.values())], Path(self.plan.shared["shards"], features.result)
        self.features_run(features.run, self.plan.shared, made_from, result, [f"--trainer.precision={precision_here(self.plan.precision)}"])

    def train_and_test(self, name: str, arm: Arm, seed: int) -> None:
        run = Run(tuple(arm.configs), arm.overrides)
        paths = [arm.overrides.get(f"shared.{option}", path) for option, path in self.plan.shared.items()]
        options = [f"--seed_everything={seed}", f"--data.init_args.reader.seed={seed}", f"--trainer.precision={precision_here(self.plan.precision)}"]
        made = self.fit_run(name, run, self.plan.shared, [seed, *map(content_of, paths)], options)
        self.test_run(name, run, self.plan.shared, [made], options)

    def report(self, arms: Mapping[str, Arm]) -> dict[str, Any]:
        comparison = compare(self.compared(arms))
        guesses: Chance = {}
        for name, arm in arms.items():
            guesses |= self.report_of(run_name(name, arm.seeds[0]))["chance"]
        report = {
            **comparison.as_json(),
            "chance": guesses,
            "means": {name: mean_shares(comparison.shares, prefix) for name, prefix in self.plan.means.items()},
            "arms": {
                name: {**asdict(arm), "seconds": self.seconds_of(name, arm), "data_fingerprints": fingerprints_of(self.out / name)}
                for name, arm in arms.items()
            },
            "figures": [path.name for path in self.figures(comparison, guesses, arms)],
            "context": context({"shared": dict(self.plan.shared)}),
        }
        write_json(self.out / "report.json", report)
        write_text(self.out / "report.md", report_text(report, markdown_comparison(comparison, guesses)))
        for table in rich_comparison(comparison, guesses):
            self.console.print(table)
        self.console.print(f"report: {self.out / 'report.md'}", highlight=False, soft_wrap=True)
        return report

    def compared(self, arms: Mapping[str, Arm]) -> list[ComparedRun]:
        """The rows of the tables. Where the row to compare to belongs to no chosen arm, a row stands alone."""
        rows = {row for arm in arms.values() for row in arm.rows.values()}
        found = []
        for name, arm in arms.items():
            trainings = tuple(read_predictions(self.out / run_name(name, seed) / "predictions.jsonl") for seed in arm.seeds)
            found += [ComparedRun(row, trainings, mode, arm.against if arm.against in rows else row) for mode, row in arm.rows.items()]
        return found

    def seconds_of(self, name: str, arm: Arm) -> dict[str, float]:
        """The mean over the seeds."""
        seconds = self.stages.seconds()
        return {stage: round(sum(seconds[f"{stage} {run_name(name, seed)}"] for seed in arm.seeds) / len(arm.seeds), 1) for stage in ("fit", "test")}

    def figures(self, comparison: Comparison, guesses: Chance, arms: Mapping[str, Arm]) -> list[Path]:
        """Bars, and what the plan asks for and the chosen arms can show."""
        found = plot_families(comparison, guesses, self.out)
        rows = {row for arm in arms.values() for row in arm.rows.values()}
        numbers = {row: number for row, number in self.plan.segment_tokens.items() if row in rows}
        tasks = [task for task, shares in comparison.shares.items() if numbers.keys() <= shares.keys()]
        if len(numbers) > 1 and tasks:
            found.append(plot_against_number(comparison, numbers, tasks, guesses, self.out / "segment_tokens.png", "segment tokens"))
        curves = {name: self.curves_of(name, arms[name]) for name in self.plan.learning_curves if name in arms}
        if curves:
            found.append(plot_curves(curves, self.out / "learning_curves.png", "hit@1 on the validation set, %"))
        return found

    def curves_of(self, name: str, arm: Arm) -> list[dict[int, float]]:
        return [read_curve(self.out / run_name(name, seed), "val/hit@1") for seed in arm.seeds]


def run_name(arm: str, seed: int) -> str:
    """The run's folder in the study's; `virtue-pl compare OUT/ARM` takes all seeds together."""
    return f"{arm}/seed_{seed}"


def content_of(path: str) -> dict[str, str]:
    """Checksums of a file, or of the manifests in a folder of shards."""
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("manifest.json"))
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def report_text(report: Mapping[str, Any], tables: str) -> str:
    lines = [f"# Ablations ({report['context']['date']})", "", *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in report["figures"])]
    for name, rows in report["means"].items():
        lines += [f"### {name}, mean hit@1 over its tasks, %", "", "| run | mean |", "|---|---:|"] if rows else []
        lines += [*(f"| {row} | {100 * mean:.1f} |" for row, mean in rows.items()), ""]
    lines += [tables, "### arms", "", "| arm | configs | overrides | seeds | seconds to fit | to test |", "|---|---|---|---|---:|---:|"]
    for name, arm in report["arms"].items():
        overrides = ", ".join(f"{option}={value}" for option, value in arm["overrides"].items())
        cells = [name, ", ".join(arm["configs"]), overrides, ", ".join(map(str, arm["seeds"])), str(arm["seconds"]["fit"]), str(arm["seconds"]["test"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
